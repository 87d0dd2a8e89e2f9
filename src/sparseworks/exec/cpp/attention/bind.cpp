// Attention over blocks, pages and token lists.
#include "../bind.h"
#include "attention.h"

namespace sparseworks {
namespace {

void run_prefill(Address q, Address k, Address v, Address out, Address lse, Address ptr, Address idx, Address order,
                 int64_t batch, int64_t heads, int64_t kv_heads, int64_t queries, int64_t keys, int64_t d,
                 int64_t block, bool causal, float scale, int threads) {
    SW_RUN(prefill, {at<float>(q), at<float>(k), at<float>(v), to<float>(out), to<float>(lse), at<int32_t>(ptr),
                     at<int32_t>(idx), at<int32_t>(order), batch, heads, kv_heads, queries, keys, d,
                     block, causal, scale, threads});
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

void run_tokens(Address q, Address k, Address v, Address ptr, Address idx, Address out, Address lse, int64_t heads,
                int64_t kv_heads, int64_t lists, int64_t queries, int64_t tokens, int64_t d, float scale, int threads) {
    SW_RUN(attend_tokens, {at<float>(q), at<float>(k), at<float>(v), at<int32_t>(ptr), at<int32_t>(idx), to<float>(out),
                           to<float>(lse), heads, kv_heads, lists, queries, tokens, d, scale, threads});
}

}  // namespace

void bind_attention(nb::module_& m) {
    m.def("prefill", &run_prefill, nb::call_guard<nb::gil_scoped_release>());
    m.def("pages", &run_pages, nb::call_guard<nb::gil_scoped_release>());
    m.def("tokens", &run_tokens, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace sparseworks
