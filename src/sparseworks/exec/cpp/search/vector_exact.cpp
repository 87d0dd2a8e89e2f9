// Every posting of the query's terms, one range of documents after the other, so that the accumulators stay in cache.
#include "../best.h"
#include "search.h"

namespace sparseworks::SW_ISA {
namespace {

// Documents of one list differ, so four sums may be read before any is written.
SW_INLINE void add(float* sums, const uint16_t* local, const float* values, int64_t n, float weight) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
        uint64_t four;
        std::memcpy(&four, local + j, 8);
        const uint16_t a = four, b = four >> 16, c = four >> 32, d = four >> 48;
        const float sa = sums[a] + weight * values[j], sb = sums[b] + weight * values[j + 1];
        const float sc = sums[c] + weight * values[j + 2], sd = sums[d] + weight * values[j + 3];
        sums[a] = sa, sums[b] = sb, sums[c] = sc, sums[d] = sd;
    }
    for (; j < n; ++j) sums[local[j]] += weight * values[j];
}

// Offers every sum above the bar and clears the sums; documents come in rising order, so a tie never replaces.
void sweep(float* sums, int64_t n, int64_t first, const uint8_t* allowed, Best& best) {
    constexpr int kStep = 4 * W;
    for (int64_t i = 0; i < n; i += kStep) {
        Lanes v[4];
        each<4>([&](auto u) { v[u] = load(sums + i + u * W); });
        if (any_above(greater(greater(v[0], v[1]), greater(v[2], v[3])), all(best.bar())) || best.size < best.k) {
            for (int64_t d = i; d < n && d < i + kStep; ++d) {
                if ((best.size < best.k || sums[d] > best.bar()) && (!allowed || allowed[first + d])) best.push(sums[d], first + d);
            }
        }
        each<4>([&](auto u) { store(sums + i + u * W, zero()); });
    }
}

void part(const Exact& a, int64_t begin, int64_t end) {
    constexpr int kGroup = 16;  // queries that share a range's postings while these are in cache
    thread_local Scratch scratch;
    const int64_t room = (a.size + 4 * W) / (4 * W) * 4 * W;
    float* sums = scratch.floats(room);
    for (int64_t i = 0; i < room; ++i) sums[i] = 0;
    for (int64_t q0 = begin; q0 < end; q0 += kGroup) {
        const int64_t group = end - q0 < kGroup ? end - q0 : kGroup;
        Best best[kGroup];
        for (int64_t g = 0; g < group; ++g) best[g] = {a.scores + (q0 + g) * a.k, a.ids + (q0 + g) * a.k, a.k, 0};
        for (int64_t r = 0; r < a.ranges; ++r) {
            const int64_t first = r * a.size, n = a.documents - first < a.size ? a.documents - first : a.size;
            for (int64_t g = 0; g < group; ++g) {
                const int64_t from = a.ptr[q0 + g], to = a.ptr[q0 + g + 1];
                for (int64_t t = from; t < to; ++t) {
                    if (t + 2 < to) {
                        const int64_t next = a.ptr_of[a.terms[t + 2] * a.ranges + r];
                        __builtin_prefetch(a.local + next);
                        __builtin_prefetch(a.values + next);
                        __builtin_prefetch(a.values + next + 16);
                    }
                    const int64_t* p = a.ptr_of + a.terms[t] * a.ranges + r;
                    add(sums, a.local + p[0], a.values + p[0], p[1] - p[0], a.weights[t]);
                }
                sweep(sums, n, first, a.allowed, best[g]);
            }
        }
        for (int64_t g = 0; g < group; ++g) {
            best[g].sort();
            for (int64_t i = best[g].size; i < a.k; ++i) best[g].score[i] = -INFINITY, best[g].id[i] = -1;
        }
    }
}

}  // namespace

void search_exact(const Exact& a) {
    split(a.queries, a.threads, a.queries * a.documents, [&](int64_t begin, int64_t end) { part(a, begin, end); });
}

}  // namespace sparseworks::SW_ISA
