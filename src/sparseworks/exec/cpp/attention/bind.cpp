// Attention: tensors come as (address, strides of batch, head and token).
#include <nanobind/stl/array.h>

#include <array>

#include "../bind.h"
#include "attention.h"

namespace sparseworks {
namespace {

using Strided = std::array<int64_t, 4>;

View view(const Strided& t) { return {to<float>(static_cast<Address>(t[0])), t[1], t[2], t[3]}; }
Sizes sizes(const std::array<int64_t, 6>& n) { return {n[0], n[1], n[2], n[3], n[4], n[5]}; }

// (address of ptr, of columns, heads, queries of a block, keys of a block)
Blocks blocks(const std::array<int64_t, 5>& b) {
    return {at<int32_t>(static_cast<Address>(b[0])), at<int32_t>(static_cast<Address>(b[1])), b[2], b[3], b[4]};
}

void run_prefill(const Strided& q, const Strided& k, const Strided& v, const Strided& out, Address lse,
                 const std::array<int64_t, 5>& b, const std::array<int64_t, 6>& n, bool causal, float scale, int threads) {
    const Prefill a{view(q), view(k), view(v), view(out), to<float>(lse), blocks(b), sizes(n), causal, scale, threads};
    SW_RUN(prefill, a);
}

void run_prefill_gradient(const std::array<Strided, 8>& t, Address lse, Address dlse, const std::array<int64_t, 5>& b,
                          const std::array<int64_t, 6>& n, bool causal, float scale, int threads) {
    const PrefillGradient a{view(t[0]), view(t[1]), view(t[2]), view(t[3]), view(t[4]), view(t[5]), view(t[6]), view(t[7]),
                            at<float>(lse), at<float>(dlse), blocks(b), sizes(n), causal, scale, threads};
    SW_RUN(prefill_gradient, a);
}

// `blocks` as above, then how many sequences have lists of their own and the position of the first query.
void run_columns(const Strided& q, const Strided& k, const Strided& v, const Strided& out, Address lse,
                 const std::array<int64_t, 7>& c, const std::array<int64_t, 6>& n, bool causal, float scale, int threads) {
    const Columns a{view(q), view(k), view(v), view(out), to<float>(lse), blocks({c[0], c[1], c[2], c[3], c[4]}), c[5], c[6],
                    sizes(n), causal, scale, threads};
    SW_RUN(prefill_columns, a);
}

void run_peaks(const Strided& q, const Strided& k, Address places, Address out, int64_t tall, int64_t count, int64_t offset,
               const std::array<int64_t, 6>& n, bool causal, float scale, int threads) {
    const Peaks a{view(q), view(k), at<int32_t>(places), to<float>(out), tall, count, offset, sizes(n), causal, scale, threads};
    SW_RUN(peaks, a);
}

// `top` pages by their bounds; 0: those that `chosen` marks; -1: the bounds only.
void run_pages(Address q, Address k, Address v, Address bounds, Address out, Address lse, Address scores, Address chosen,
               int64_t heads, int64_t kv_heads, int64_t pages, int64_t capacity, int64_t tokens, int64_t d, int64_t top,
               float scale, int threads) {
    const Pages a{at<float>(q), at<float>(k), at<float>(v), at<float>(bounds), to<float>(out), to<float>(lse),
                  to<float>(scores), to<uint8_t>(chosen), heads, kv_heads, pages, capacity, tokens, d, top, scale, threads};
    if (top < 0) SW_RUN(bound_pages, a);
    else SW_RUN(attend_pages, a);
}

// `idx` may be null: see `Tokens`.
void run_tokens(Address q, Address k, Address v, Address begin, Address end, Address idx, Address out, Address lse, int64_t heads,
                int64_t kv_heads, int64_t lists, int64_t queries, int64_t stride, int64_t d, float scale, int threads) {
    SW_RUN(attend_tokens, {at<float>(q), at<float>(k), at<float>(v), at<int32_t>(begin), at<int32_t>(end), at<int32_t>(idx),
                           to<float>(out), to<float>(lse), heads, kv_heads, lists, queries, stride, d, scale, threads});
}

void run_bitmaps(Address q, Address pieces, Address first, Address out, Address lse, int64_t segments, int64_t queries, int64_t d,
                 bool half, float scale, int threads) {
    SW_RUN(attend_bitmaps, {at<float>(q), at<int64_t>(pieces), at<int32_t>(first), to<float>(out), to<float>(lse), segments, queries,
                            d, half, scale, threads});
}

void run_best(Address scores, Address keep, Address idx, Address counts, int64_t rows, int64_t n, int threads) {
    SW_RUN(best, {at<float>(scores), at<int32_t>(keep), to<int32_t>(idx), to<int32_t>(counts), rows, n, threads});
}

float run_cut(Address scores, Address weight, int64_t n, int64_t keep) {
    float limit = 0;
    const Cut a{at<float>(scores), at<int32_t>(weight), &limit, n, keep};
    SW_RUN(cut, a);
    return limit;
}

// Addresses: q, k, v, cos, sin, mask, keys, values, out.
void run_next(const std::array<Address, 9>& t, int64_t batch, int64_t heads, int64_t kv_heads, int64_t tokens, int64_t capacity,
              int64_t d, int64_t width, int64_t angles, bool half, float scale, int threads) {
    SW_RUN(attend_next, {at<float>(t[0]), at<float>(t[1]), at<float>(t[2]), at<float>(t[3]), at<float>(t[4]), at<float>(t[5]),
                         to<void>(t[6]), to<void>(t[7]), to<float>(t[8]), batch, heads, kv_heads, tokens, capacity, d, width,
                         angles, half, scale, threads});
}

}  // namespace

void bind_attention(nb::module_& m) {
    const nb::call_guard<nb::gil_scoped_release> free;
    m.def("prefill", &run_prefill, free);
    m.def("prefill_gradient", &run_prefill_gradient, free);
    m.def("prefill_columns", &run_columns, free);
    m.def("peaks", &run_peaks, free);
    m.def("pages", &run_pages, free);
    m.def("tokens", &run_tokens, free);
    m.def("bitmaps", &run_bitmaps, free);
    m.def("best", &run_best, free);
    m.def("cut", &run_cut, free);
    m.def("next_token", &run_next, free);
}

}  // namespace sparseworks
