// The largest scores of a row, as a list of their places: by bisection on the bits of a limit, whose passes over scores that lie in a
// near cache have no branch that depends on them.
#include "../simd.h"
#include "attention.h"

namespace sparseworks::SW_ISA {
namespace {

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

// What the entries that reach `limit` weigh; without weights, how many they are.
template <bool kWeighed>
int64_t reached(const float* scores, const int32_t* weight, int64_t n, int32_t limit) {
    Ints counts = {};
    int64_t p = 0, total = 0;
    for (; p + W <= n; p += W) {
        const Ints there = ordered(load(scores + p)) >= limit;
        if constexpr (kWeighed) counts += there & load(weight + p);
        else counts -= there;
    }
    for (; p < n; ++p) {
        if (ordered(scores[p]) >= limit) total += kWeighed ? weight[p] : 1;
    }
    for (int i = 0; i < W; ++i) total += counts[i];
    return total;
}

// The largest limit that at least `keep` reach.
template <bool kWeighed>
int32_t limit_of(const float* scores, const int32_t* weight, int64_t n, int64_t keep) {
    Ints most = Ints{} + INT32_MIN, least = Ints{} + INT32_MAX;
    int64_t p = 0;
    for (; p + W <= n; p += W) {
        const Ints key = ordered(load(scores + p));
        most = key > most ? key : most;
        least = key < least ? key : least;
    }
    int64_t low = INT32_MAX, high = INT32_MIN;
    const auto see = [&](int64_t a, int64_t b) { low = a < low ? a : low, high = b > high ? b : high; };
    for (int i = 0; i < W; ++i) see(least[i], most[i]);
    for (; p < n; ++p) see(ordered(scores[p]), ordered(scores[p]));
    while (low < high) {
        const int64_t mid = low + (high - low + 1) / 2, count = reached<kWeighed>(scores, weight, n, static_cast<int32_t>(mid));
        if (count >= keep) low = mid;
        else high = mid - 1;
        if (!kWeighed && count == keep) break;  // the same entries reach it
    }
    return static_cast<int32_t>(low);
}

void best_row(const Best& a, int64_t r) {
    const float* scores = a.scores + r * a.n;
    int32_t* idx = a.idx + r * a.n;
    const int64_t must = reached<false>(scores, nullptr, a.n, ordered(HUGE_VALF));
    const int64_t live = reached<false>(scores, nullptr, a.n, ordered(-HUGE_VALF) + 1);
    const int64_t wanted = a.keep[r] > must ? a.keep[r] : must, keep = wanted < live ? wanted : live;
    a.counts[r] = static_cast<int32_t>(keep);
    if (keep <= 0) return;
    const int32_t limit = keep == live ? ordered(-HUGE_VALF) + 1 : limit_of<false>(scores, nullptr, a.n, keep);
    const int64_t above = limit == INT32_MAX ? 0 : reached<false>(scores, nullptr, a.n, limit + 1);
    int64_t ties = keep - above, count = 0;
    for (int64_t p = 0; p < a.n; p += W) {
        const Ints key = ordered(load_first(scores + p, a.n - p));
        const int64_t here = a.n - p < W ? a.n - p : W;
        for (int64_t i = 0; i < here && count < keep; ++i) {
            const bool tie = key[i] == limit && ties > 0;
            ties -= tie;
            idx[count] = static_cast<int32_t>(p + i);
            count += key[i] > limit || tie;
        }
    }
}

}  // namespace

void best(const Best& a) {
    dynamic(a.rows, a.threads, [&](int64_t r) { best_row(a, r); });
}

void cut(const Cut& a) {
    const bool enough = a.n && reached<true>(a.scores, a.weight, a.n, INT32_MIN) >= a.keep;
    *a.limit = enough ? unordered(limit_of<true>(a.scores, a.weight, a.n, a.keep)) : -HUGE_VALF;
}

}  // namespace sparseworks::SW_ISA
