// Attention of few queries over lists of tokens, or over tokens that lie side by side: each is read once for all queries of a head.
#include "../simd.h"
#include "attention.h"
#include "online.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int kTogether = kRegisters == 32 ? 4 : 2;  // queries
constexpr int kWide = W == 4 ? 2 : 4;                // vectors of values whose sums stay in registers

thread_local Scratch scratch;

struct Listed {
    const float* rows;
    const int32_t* idx;
    int64_t d;
    const float* operator()(int64_t j) const { return rows + idx[j] * d; }
};

struct Adjacent {
    const float* rows;
    int64_t d;
    const float* operator()(int64_t j) const { return rows + j * d; }
};

SW_INLINE void prefetch(const float* p, int64_t floats) {
    for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(p + i);
}

// Adds weight_n,j v_j to N vectors of the sums of Q queries, from column c on.
template <int Q, int N, class Row>
SW_INLINE void add_values(const float* weight, int64_t keys, const Row& v, int64_t first, int64_t c, int64_t d, float* out) {
    Lanes sums[Q][N];
    each<Q>([&](auto n) { each<N>([&](auto i) { sums[n][i] = load(out + n * d + c + i * W); }); });
    for (int64_t j = 0; j < keys; ++j) {
        const float* row = v(first + j) + c;
        Lanes value[N];
        each<N>([&](auto i) { value[i] = load(row + i * W); });
        each<Q>([&](auto n) {
            const Lanes p = all(weight[n * kPage + j]);
            each<N>([&](auto i) { sums[n][i] = multiply_add(p, value[i], sums[n][i]); });
        });
    }
    each<Q>([&](auto n) { each<N>([&](auto i) { store(out + n * d + c + i * W, sums[n][i]); }); });
}

// Q queries over 64 tokens of a list, or the `left` that there still are. `fetch`: values of these and keys of the next are fetched.
template <int Q, class Row>
SW_INLINE void page(const float* q, const Row& k, const Row& v, int64_t first, int64_t left, bool fetch, int64_t d, State* states,
                    float* score) {
    const int64_t keys = left < kPage ? left : kPage;
    for (int64_t j = 0; j < Q * kPage; j += W) store(score + j, zero());
    for (int64_t j = 0; j < keys; j += kKeys) {
        const float* rows[kKeys];  // behind the last key: it once more, whose scores nobody reads
        each<kKeys>([&](auto i) { rows[i] = k(first + (j + i < keys ? j + i : keys - 1)); });
        if (fetch) {
            each<kKeys>([&](auto i) {
                if (j + i < keys) prefetch(v(first + j + i), d);
                if (j + i + kPage < left) prefetch(k(first + j + i + kPage), d);
            });
        }
        add_scores<Q>(q, d, rows, score + j);
    }
    each<Q>([&](auto n) { soften(states[n], score + n * kPage, keys, d); });
    int64_t c = 0;
    for (; c + kWide * W <= d; c += kWide * W) add_values<Q, kWide>(score, keys, v, first, c, d, states[0].out);
    for (; c < d; c += 32) add_values<Q, 32 / W < kWide ? 32 / W : kWide>(score, keys, v, first, c, d, states[0].out);
}

template <class Row>
void head(const Tokens& a, int64_t head, const Row& k, const Row& v, int64_t count) {
    float* memory = scratch.floats(a.queries * (2 * a.d + 16) + kTogether * kPage);
    float *q = memory + a.queries * a.d, *score = q + a.queries * a.d;
    State* states = reinterpret_cast<State*>(score + kTogether * kPage);
    const float* given = a.q + head * a.queries * a.d;
    for (int64_t n = 0; n < a.queries; ++n) states[n] = {memory + n * a.d, kNothing, 0};
    for (int64_t c = 0; c < a.queries * a.d; ++c) memory[c] = 0, q[c] = given[c] * a.scale;
    for (int64_t first = 0; first < count; first += kPage) {
        bool fetch = true;
        for (int64_t n = 0; n < a.queries; fetch = false) {
            const int64_t left = a.queries - n;
            const float* some = q + n * a.d;
            if (left >= kTogether) page<kTogether>(some, k, v, first, count - first, fetch, a.d, states + n, score), n += kTogether;
            else if (left >= 2) page<2>(some, k, v, first, count - first, fetch, a.d, states + n, score), n += 2;
            else page<1>(some, k, v, first, count - first, fetch, a.d, states + n, score), n += 1;
        }
    }
    for (int64_t n = 0; n < a.queries; ++n) {
        const State& s = states[n];
        const float share = s.total != 0 ? 1 / s.total : 0.0f;
        float* out = a.out + (head * a.queries + n) * a.d;
        a.lse[head * a.queries + n] = s.total != 0 ? s.most + std::log(s.total) : kNothing;
        for (int64_t c = 0; c < a.d; c += W) store(out + c, load(s.out + c) * share);
    }
}

}  // namespace

void attend_tokens(const Tokens& a) {
    dynamic(a.heads, a.threads, [&](int64_t h) {
        const int64_t kv = h / (a.heads / a.kv_heads), list = a.lists == a.heads ? h : kv;
        const float *k = a.k + kv * a.stride, *v = a.v + kv * a.stride;
        const int64_t begin = a.begin[list], count = a.end[list] - begin;
        if (a.idx) {
            const int32_t* idx = a.idx + begin;
            head(a, h, Listed{k, idx, a.d}, Listed{v, idx, a.d}, count);
        } else {
            head(a, h, Adjacent{k + begin * a.d, a.d}, Adjacent{v + begin * a.d, a.d}, count);
        }
    });
}

}  // namespace sparseworks::SW_ISA
