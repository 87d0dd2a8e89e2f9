// Threads: the OpenMP pool that torch already started (same libgomp, torch is imported first), or none.
#pragma once
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace sparseworks {

// Below this many multiply-adds waking a second thread costs more than it saves.
constexpr int64_t kSerialWork = 1 << 15;

// body(begin, end) over [0, n) in at most `threads` contiguous parts.
template <class Body>
void split(int64_t n, int threads, int64_t work, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && n > 1 && work > kSerialWork && !omp_in_parallel()) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
            body(n * me / team, n * (me + 1) / team);
        }
        return;
    }
#endif
    body(0, n);
}

// body(i) for each of n items of unequal work: a thread that is free takes the next.
template <class Body>
void dynamic(int64_t n, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && n > 1 && !omp_in_parallel()) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int64_t i = 0; i < n; ++i) body(i);
        return;
    }
#endif
    for (int64_t i = 0; i < n; ++i) body(i);
}

// All threads of a team wait for each other.
static inline void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

// body(i, me, parts, shared, own) for each of n items: a thread takes whole items where there are enough of them (parts = 1),
// otherwise all share one item after the other. `memory(floats)` is a thread's scratch: `shared` floats for an item's team,
// `own` for each thread.
template <class Memory, class Body>
void teams(int64_t n, int threads, int64_t shared, int64_t own, const Memory& memory, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && !omp_in_parallel()) {
        const bool alone = n >= 2 * threads;
        float* common = alone ? nullptr : memory(shared + own);
#pragma omp parallel num_threads(threads)
        {
            const int64_t parts = omp_get_num_threads(), me = omp_get_thread_num();
            if (alone) {
                float* mine = memory(shared + own);
#pragma omp for schedule(dynamic, 1)
                for (int64_t i = 0; i < n; ++i) body(i, 0, 1, mine, mine + shared);
            } else {
                float* mine = me == 0 ? common + shared : memory(own);
                for (int64_t i = 0; i < n; ++i) body(i, me, parts, common, mine);
            }
        }
        return;
    }
#endif
    float* mine = memory(shared + own);
    for (int64_t i = 0; i < n; ++i) body(i, 0, 1, mine, mine + shared);
}

// Rows [first(begin), first(end)) such that parts hold equally many entries; `ptr` may be null (equal rows).
static inline int64_t balanced(const int32_t* ptr, int64_t rows, int64_t part, int64_t parts) {
    if (!ptr || part == 0 || part == parts) return rows * part / parts;
    const int64_t goal = ptr[0] + static_cast<int64_t>(ptr[rows] - ptr[0]) * part / parts;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (ptr[mid] < goal) low = mid + 1;
        else high = mid;
    }
    return low;
}

}  // namespace sparseworks
