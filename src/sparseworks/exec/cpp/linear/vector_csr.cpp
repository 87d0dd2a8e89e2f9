// One row of x at a time times rows padded to eight entries.
#include "gather.h"
#include "linear.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kAhead = 512;  // entries fetched ahead; beyond the end a prefetch does nothing

template <class T>
float row(const float* x, const uint16_t* columns, const T* values, int64_t n) {
    Gathered sums;
    int64_t i = 0;
    for (; i + Gathered::kStep <= n; i += Gathered::kStep) {
        __builtin_prefetch(columns + i + kAhead);
        __builtin_prefetch(values + i + kAhead);
        sums.step(x, columns + i, values + i);
    }
    sums.last(x, columns + i, values + i, n - i);
    return sums.total();
}

template <class T>
void run(const Csr& a) {
    const T* values = static_cast<const T*>(a.values);
    const int64_t parts = a.threads, entries = a.ptr ? a.ptr[a.out] : a.slots * a.out;
    split(parts, a.threads, a.rows * entries * 4, [&](int64_t begin, int64_t end) {
        const int64_t first = balanced(a.ptr, a.out, begin, parts), last = balanced(a.ptr, a.out, end, parts);
        for (int64_t n = first; n < last; ++n) {
            const int64_t e = a.ptr ? a.ptr[n] : n * a.slots, count = a.ptr ? a.ptr[n + 1] - e : a.slots;
            const float start = a.bias ? a.bias[n] : 0.0f;
            for (int64_t m = 0; m < a.rows; ++m) {
                const float sum = row(a.x + m * a.in, a.columns + e, values + e, count);
                a.y[m * a.out + n] = start + (a.scale ? sum * a.scale[n] : sum);
            }
        }
    });
}

}  // namespace

void csr(const Csr& a) { a.scale ? run<int8_t>(a) : a.bf16 ? run<uint16_t>(a) : run<float>(a); }

}  // namespace sparseworks::SW_ISA
