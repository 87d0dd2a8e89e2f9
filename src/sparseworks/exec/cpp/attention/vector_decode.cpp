// Attention of one query, bound by reading keys and values once: over pages whose keys are stored transposed, chosen by the bounds of
// their keys.
#include "../simd.h"
#include "attention.h"
#include "online.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int kHalf = 32 / W;  // vectors in 32 numbers: d is a multiple of that

thread_local Scratch scratch;

// out[0 : N * W] += sum over keys of weight times row(key).
template <int N, class Row>
SW_INLINE void add_values(const float* weight, int64_t count, const Row& row, float* out) {
    Lanes sums[N];
    each<N>([&](auto i) { sums[i] = load(out + i * W); });
    for (int64_t j = 0; j < count; ++j) {
        const Lanes p = all(weight[j]);
        const float* v = row(j);
        each<N>([&](auto i) { sums[i] = multiply_add(p, load(v + i * W), sums[i]); });
    }
    each<N>([&](auto i) { store(out + i * W, sums[i]); });
}

template <class Row>
SW_INLINE void values(const float* weight, int64_t count, int64_t d, const Row& row, float* out) {
    int64_t c = 0;
    for (; c + 64 <= d && W > 4; c += 64) {
        add_values<2 * kHalf>(weight, count, [&](int64_t j) { return row(j) + c; }, out + c);
    }
    for (; c < d; c += 32) add_values<kHalf>(weight, count, [&](int64_t j) { return row(j) + c; }, out + c);
}

SW_INLINE void finish(const State& s, int64_t d, float* out, float* lse) {
    const float share = s.total != 0 ? 1 / s.total : 0.0f;
    *lse = s.total != 0 ? s.most + std::log(s.total) : kNothing;
    for (int64_t c = 0; c < d; c += W) store(out + c, load(s.out + c) * share);
}

SW_INLINE void prefetch(const float* p, int64_t floats) {
    for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(p + i);
}

template <int N>
SW_INLINE void page_scores(const float* q, const float* k, int64_t d, const float* next, float* score) {
    Lanes sums[N];
    each<N>([&](auto i) { sums[i] = zero(); });
    for (int64_t c = 0; c < d; ++c) {
        if (next) prefetch(next + c * kPage, kPage);
        const Lanes x = all(q[c]);
        each<N>([&](auto i) { sums[i] = multiply_add(x, load(k + c * kPage + i * W), sums[i]); });
    }
    each<N>([&](auto i) { store(score + i * W, sums[i]); });
}

// Upper bound of q k over the keys of a page: sum over c of q_c times the largest k_c, or the smallest where q_c < 0. Only one of
// both is read.
void bound_head(const Pages& a, int64_t head) {
    const float *q = a.q + head * a.d, *bounds = a.bounds + head / (a.heads / a.kv_heads) * a.capacity * 2 * a.d;
    float* scores = a.scores + head * a.capacity;
    constexpr int kVectors = kBounds / W;
    for (int64_t p = 0; p < a.pages; p += kBounds, bounds += 2 * a.d * kBounds) {
        Lanes sums[kVectors];
        each<kVectors>([&](auto i) { sums[i] = zero(); });
        for (int64_t c = 0; c < a.d; ++c) {
            const float* side = bounds + ((q[c] < 0 ? a.d : 0) + c) * kBounds;
            __builtin_prefetch(side + 2 * a.d * kBounds);
            const Lanes x = all(q[c]);
            each<kVectors>([&](auto i) { sums[i] = multiply_add(x, load(side + i * W), sums[i]); });
        }
        each<kVectors>([&](auto i) { store(scores + p + i * W, sums[i] * a.scale); });
    }
}

// Whole numbers in the order of the floats.
SW_INLINE Ints ordered(Lanes v) {
    const Ints word = bits(v);
    return word ^ ((word >> 31) & 0x7fffffff);
}

int64_t count_from(const float* scores, int64_t pages, int32_t limit) {
    Ints counts = {};
    for (int64_t p = 0; p < pages; p += W) counts -= ordered(load(scores + p)) >= limit;
    int64_t count = 0;
    for (int i = 0; i < W; ++i) count += counts[i];
    return count;
}

// The `top` pages of the largest bounds (ties: the earlier), the last page among them. Bisection over the bits of the threshold
// takes 32 passes over scores in L1, without a branch that depends on them.
void choose(const Pages& a, int64_t head) {
    float* scores = a.scores + head * a.capacity;
    uint8_t* chosen = a.chosen + head * a.capacity;
    const float last = scores[a.pages - 1];
    scores[a.pages - 1] = HUGE_VALF;
    for (int64_t p = a.pages; p < a.capacity && p % kBounds; ++p) scores[p] = kNothing;
    int64_t low = INT32_MIN, high = INT32_MAX;  // the largest limit that at least `top` pages reach
    while (low < high) {
        const int64_t mid = low + (high - low + 1) / 2, count = count_from(scores, a.pages, static_cast<int32_t>(mid));
        if (count >= a.top) low = mid;
        else high = mid - 1;
        if (count == a.top) break;
    }
    int64_t ties = a.top;
    const auto key = [&](int64_t p) { return static_cast<int64_t>(ordered(all(scores[p]))[0]); };
    for (int64_t p = 0; p < a.pages; ++p) ties -= chosen[p] = key(p) > low;
    for (int64_t p = 0; p < a.pages && ties > 0; ++p) {
        if (key(p) == low) chosen[p] = 1, --ties;
    }
    scores[a.pages - 1] = last;
}

// All query heads of one key head walk through the pages together: a page that several of them chose is loaded once.
void key_head(const Pages& a, int64_t kv) {
    const int64_t group = a.heads / a.kv_heads, first = kv * group;
    constexpr int64_t kSpare = 16;
    float* memory = scratch.floats(2 * group * a.d + kPage + group * kSpare + a.pages + 1);
    float *q = memory + group * a.d, *score = q + group * a.d;
    State* states = reinterpret_cast<State*>(score + kPage);
    int32_t* list = reinterpret_cast<int32_t*>(score + kPage + group * kSpare);
    for (int64_t h = 0; h < group; ++h) {
        states[h] = {memory + h * a.d, kNothing, 0};
        for (int64_t c = 0; c < a.d; ++c) states[h].out[c] = 0, q[h * a.d + c] = a.q[(first + h) * a.d + c] * a.scale;
    }
    int64_t count = 0;
    for (int64_t p = 0; p < a.pages; ++p) {
        bool any = false;
        for (int64_t h = 0; h < group; ++h) any |= a.chosen[(first + h) * a.capacity + p] != 0;
        list[count] = static_cast<int32_t>(p);
        count += any;
    }
    for (int64_t e = 0; e < count; ++e) {
        const int64_t p = list[e], size = kPage * a.d, left = a.tokens - p * kPage, keys = left < kPage ? left : kPage;
        const float *k = a.k + (kv * a.capacity + p) * size, *v = a.v + (kv * a.capacity + p) * size;
        const int64_t ahead = e + 1 < count ? (list[e + 1] - p) * size : 0;
        bool fetched = ahead == 0;
        for (int64_t h = 0; h < group; ++h) {
            if (!a.chosen[(first + h) * a.capacity + p]) continue;
            const float* next = fetched ? nullptr : k + ahead;
            if constexpr (W == 4) {
                page_scores<8>(q + h * a.d, k, a.d, next, score);
                page_scores<8>(q + h * a.d, k + 32, a.d, nullptr, score + 32);
            } else {
                page_scores<kPage / W>(q + h * a.d, k, a.d, next, score);
            }
            soften(states[h], score, keys, a.d);
            if (fetched) {
                values(score, keys, a.d, [&](int64_t j) { return v + j * a.d; }, states[h].out);
            } else {
                values(score, keys, a.d, [&](int64_t j) { prefetch(v + ahead + j * a.d, a.d); return v + j * a.d; },
                       states[h].out);
            }
            fetched = true;
        }
    }
    for (int64_t h = 0; h < group; ++h) finish(states[h], a.d, a.out + (first + h) * a.d, a.lse + first + h);
}

}  // namespace

void bound_pages(const Pages& a) {
    dynamic(a.heads, a.threads, [&](int64_t head) { bound_head(a, head); });
}

// With `top` the pages are chosen here, otherwise `chosen` says which.
void attend_pages(const Pages& a) {
    const int64_t group = a.heads / a.kv_heads;
    dynamic(a.kv_heads, a.threads, [&](int64_t kv) {
        for (int64_t head = kv * group; a.top > 0 && head < (kv + 1) * group; ++head) {
            bound_head(a, head);
            choose(a, head);
        }
        key_head(a, kv);
    });
}

}  // namespace sparseworks::SW_ISA
