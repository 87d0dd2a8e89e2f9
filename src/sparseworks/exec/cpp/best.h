// The k best of a stream of scores, ties to the lower id: a heap whose root is the worst kept, or what was gathered and cut.
#pragma once
#include <algorithm>
#include <cstring>

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

// Bit i: lane i is above its bar; never for NaN.
SW_INLINE uint32_t above(Lanes v, Lanes bar) {
#if SW_LANES == 8
    return _mm256_movemask_ps(_mm256_cmp_ps(v, bar, _CMP_GT_OQ));
#elif defined(SW_ISA_AVX512)
    return _mm512_cmp_ps_mask(v, bar, _CMP_GT_OQ);
#else
    const Ints yes = v > bar;
    uint32_t mask = 0;
    for (int i = 0; i < W; ++i) mask |= (yes[i] & 1u) << i;
    return mask;
#endif
}
SW_INLINE bool any_above(Lanes v, Lanes bar) { return above(v, bar) != 0; }

// The k best of a stream of scores whose ids come in rising order: what is above the k-th best of some time ago is gathered, and cut to k
// when there is twice as much. Keys are sortable bits of the score before those of ~id, so that ties go to the lower id.
struct Gathered {
    uint64_t* key;  // room for 2 k + 4 W
    int64_t k, size = 0;
    float bar = -INFINITY;

    struct Larger {
        bool operator()(uint64_t a, uint64_t b) const { return a > b; }
    };
    static uint64_t pack(float s, int64_t id) {
        s += 0.0f;  // -0 is 0
        uint32_t u;
        std::memcpy(&u, &s, 4);
        u ^= u >> 31 ? 0xffffffffu : 0x80000000u;
        return static_cast<uint64_t>(u) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
    }
    static float score(uint64_t key) {
        uint32_t u = static_cast<uint32_t>(key >> 32);
        u ^= u >> 31 ? 0x80000000u : 0xffffffffu;
        float s;
        std::memcpy(&s, &u, 4);
        return s;
    }
    static int64_t id(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

    void add(float s, int64_t i) { key[size++] = pack(s, i); }
    void cut() {
        if (size < k) return;
        std::nth_element(key, key + k - 1, key + size, Larger());
        size = k;
        bar = score(key[k - 1]);
    }
    void make_room() {
        if (size >= 2 * k) cut();
    }
    // Best first.
    void sort() { std::sort(key, key + size, Larger()); }
};

}  // namespace
