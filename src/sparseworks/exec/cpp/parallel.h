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

// Rows [first(begin), first(end)) such that parts hold equally many entries; `ptr` may be null (equal rows).
inline int64_t balanced(const int32_t* ptr, int64_t rows, int64_t part, int64_t parts) {
    if (!ptr || part == 0 || part == parts) return rows * part / parts;
    const int64_t goal = static_cast<int64_t>(ptr[rows]) * part / parts;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (ptr[mid] < goal) low = mid + 1;
        else high = mid;
    }
    return low;
}

}  // namespace sparseworks
