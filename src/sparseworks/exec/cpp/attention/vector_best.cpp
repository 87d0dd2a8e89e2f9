// The largest scores of a row, as a list of their places: by bisection on the bits of a limit, whose passes over scores that lie in a
// near cache have no branch that depends on them.
#include "../simd.h"
#include "attention.h"

namespace sparseworks::SW_ISA {
namespace {

thread_local Scratch scratch;

// Whole numbers in the order of the floats; both zeros are alike.
SW_INLINE Ints ordered(Lanes v) {
    const Ints word = bits(v + 0.0f);
    return word ^ ((word >> 31) & 0x7fffffff);
}

SW_INLINE int32_t ordered(float v) { return ordered(all(v))[0]; }

float unordered(int32_t key) {
    const int32_t word = key ^ ((key >> 31) & 0x7fffffff);
    float v;
    std::memcpy(&v, &word, 4);
    return v;
}

// What the entries that reach `limit` weigh.
int64_t reached(const float* scores, const int32_t* weight, int64_t n, int32_t limit) {
    Ints counts = {};
    int64_t p = 0, total = 0;
    for (; p + W <= n; p += W) counts += (ordered(load(scores + p)) >= limit) & load(weight + p);
    for (; p < n; ++p) {
        if (ordered(scores[p]) >= limit) total += weight[p];
    }
    for (int i = 0; i < W; ++i) total += counts[i];
    return total;
}

// Places from p on of the keys above the limit, and of those at it the first.
struct Collected {
    int32_t *idx, limit;
    int64_t keep, ties, count;

    SW_INLINE void one(int32_t key, int64_t place) {
        const bool tie = key == limit && ties > 0;
        ties -= tie;
        if (count == keep) return;
        idx[count] = static_cast<int32_t>(place);
        count += key > limit || tie;
    }

    SW_INLINE void some(Ints key, int64_t place) {
#if defined(SW_ISA_AVX512)
        const __m512i keys = reinterpret_cast<__m512i>(key), least = _mm512_set1_epi32(limit);
        if (ties <= 0 || !_mm512_cmpeq_epi32_mask(keys, least)) {
            const __mmask16 above = _mm512_cmpgt_epi32_mask(keys, least);
            const __m512i places = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(place)),
                                                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
            _mm512_mask_compressstoreu_epi32(idx + count, above, places);
            count += __builtin_popcount(above);
            return;
        }
#endif
        for (int i = 0; i < W; ++i) one(key[i], place + i);
    }
};

void best_row(const Best& a, int64_t r) {
    const float* scores = a.scores + r * a.n;
    // Numbers in the order of the floats; behind the last what no limit reaches.
    const int64_t size = (a.n + W - 1) / W * W;
    int32_t* keys = reinterpret_cast<int32_t*>(scratch.floats(size));
    const int32_t none = ordered(-HUGE_VALF), all_ = ordered(HUGE_VALF);
    Ints must = {}, live = {}, most = Ints{} + INT32_MIN, least = Ints{} + INT32_MAX;
    for (int64_t p = 0; p < size; p += W) {
        Ints key = ordered(load_first(scores + p, a.n - p));
        for (int64_t i = a.n - p; i < W; ++i) key[i] = INT32_MIN;
        store(keys + p, key);
        must -= key >= all_;
        live -= key > none;
        most = key > most ? key : most;
        least = key < least ? key : least;
    }
    int64_t musts = 0, lives = 0, low = INT32_MAX, high = INT32_MIN;
    for (int i = 0; i < W; ++i) {
        musts += must[i], lives += live[i];
        low = least[i] < low ? least[i] : low, high = most[i] > high ? most[i] : high;
    }
    const auto reach = [&](int64_t limit) {
        Ints counts = {};
        int64_t total = 0;
        for (int64_t p = 0; p < size; p += W) counts -= load(keys + p) >= static_cast<int32_t>(limit);
        for (int i = 0; i < W; ++i) total += counts[i];
        return total;
    };
    const int64_t wanted = a.keep[r] > musts ? a.keep[r] : musts, keep = wanted < lives ? wanted : lives;
    a.counts[r] = static_cast<int32_t>(keep);
    if (keep <= 0) return;
    low = low > none ? low : none + 1;
    while (low < high) {
        const int64_t mid = low + (high - low + 1) / 2, count = reach(mid);
        if (count >= keep) low = mid;
        else high = mid - 1;
        if (count == keep) break;
    }
    const int64_t above = low == INT32_MAX ? 0 : reach(low + 1);
    Collected found{a.idx + r * a.n, static_cast<int32_t>(low), keep, keep - above, 0};
    for (int64_t p = 0; p < size; p += W) found.some(load(keys + p), p);
}

}  // namespace

void best(const Best& a) {
    dynamic(a.rows, a.threads, [&](int64_t r) { best_row(a, r); });
}

void cut(const Cut& a) {
    const auto reach = [&](int64_t limit) { return reached(a.scores, a.weight, a.n, static_cast<int32_t>(limit)); };
    *a.limit = -HUGE_VALF;
    if (!a.n || reach(INT32_MIN) < a.keep) return;
    int64_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t p = 0; p < a.n; ++p) {
        const int32_t key = ordered(a.scores[p]);
        low = key < low ? key : low, high = key > high ? key : high;
    }
    while (low < high) {
        const int64_t mid = low + (high - low + 1) / 2;
        if (reach(mid) >= a.keep) low = mid;
        else high = mid - 1;
    }
    *a.limit = unordered(static_cast<int32_t>(low));
}

}  // namespace sparseworks::SW_ISA
