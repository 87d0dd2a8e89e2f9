// The k best of a stream of scores: a heap whose root is the worst kept, ties to the lower id.
#pragma once
#include "simd.h"

namespace {

struct Best {
    float* score;
    int64_t* id;
    int64_t k, size;

    bool worse(int64_t a, int64_t b) const { return score[a] < score[b] || (score[a] == score[b] && id[a] > id[b]); }
    float bar() const { return size < k ? -INFINITY : score[0]; }
    bool takes(float s, int64_t i) const {
        return size < k || s > score[0] || (s == score[0] && i < id[0]);
    }
    void swap(int64_t a, int64_t b) {
        const float s = score[a];
        const int64_t i = id[a];
        score[a] = score[b], id[a] = id[b];
        score[b] = s, id[b] = i;
    }
    void sink(int64_t at, int64_t n) {
        for (;;) {
            int64_t child = 2 * at + 1;
            if (child >= n) return;
            if (child + 1 < n && worse(child + 1, child)) ++child;
            if (!worse(child, at)) return;
            swap(child, at);
            at = child;
        }
    }
    void push(float s, int64_t i) {
        if (size < k) {
            int64_t at = size++;
            score[at] = s, id[at] = i;
            for (; at && worse(at, (at - 1) / 2); at = (at - 1) / 2) swap(at, (at - 1) / 2);
        } else if (takes(s, i)) {
            score[0] = s, id[0] = i;
            sink(0, k);
        }
    }
    // Best first.
    void sort() {
        for (int64_t n = size - 1; n > 0; --n) {
            swap(0, n);
            sink(0, n);
        }
    }
};

SW_INLINE bool any_above(Lanes v, Lanes bar) {
#if SW_LANES == 8
    return _mm256_movemask_ps(_mm256_cmp_ps(v, bar, _CMP_GT_OQ)) != 0;
#elif defined(SW_ISA_AVX512)
    return _mm512_cmp_ps_mask(v, bar, _CMP_GT_OQ) != 0;
#else
    const Ints above = v > bar;
    int32_t any = 0;
    for (int i = 0; i < W; ++i) any |= above[i];
    return any != 0;
#endif
}

}  // namespace
