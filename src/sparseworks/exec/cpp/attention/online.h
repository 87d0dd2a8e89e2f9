// Softmax over keys that come a page at a time: sums so far, relative to the largest score so far.
#pragma once
#include "../simd.h"
#include "attention.h"

namespace {

using sparseworks::kPage;

constexpr float kNothing = -HUGE_VALF;

constexpr int kKeys = 4;  // keys whose scores are made together

// Adds q_n k_j to the scores of Q queries and four keys.
template <int Q, class T>
SW_INLINE void add_scores(const float* q, int64_t width, const T* const (&rows)[kKeys], float* score) {
    Lanes sums[Q][kKeys];
    each<Q>([&](auto n) { each<kKeys>([&](auto j) { sums[n][j] = zero(); }); });
    for (int64_t c = 0; c < width; c += W) {
        Lanes k[kKeys];
        each<kKeys>([&](auto j) { k[j] = load(rows[j] + c); });
        each<Q>([&](auto n) {
            const Lanes x = load(q + n * width + c);
            each<kKeys>([&](auto j) { sums[n][j] = multiply_add(x, k[j], sums[n][j]); });
        });
    }
    each<Q>([&](auto n) { add_sums(sums[n], score + n * kPage); });
}

// Online softmax of one query.
struct State {
    float* out;
    float most, total;
};

// Scores of up to 64 keys become weights; what was summed before shrinks.
SW_INLINE void soften(State& s, float* score, int64_t count, int64_t d) {
    for (int64_t n = count; n < kPage; ++n) score[n] = kNothing;
    Lanes high = load(score);
    for (int64_t n = W; n < kPage; n += W) high = greater(high, load(score + n));
    const float here = largest(high);
    if (here > s.most) {
        const float shrink = exponential(all(s.most - here))[0];
        for (int64_t c = 0; c < d; c += W) store(s.out + c, load(s.out + c) * shrink);
        s.total *= shrink;
        s.most = here;
    }
    const Lanes shift = all(s.most == kNothing ? 0.0f : s.most);
    Lanes sums = zero();
    for (int64_t n = 0; n < kPage; n += W) {
        const Lanes p = exponential(load(score + n) - shift);
        store(score + n, p);
        sums += p;
    }
    s.total += sum(sums);
}

}  // namespace
