// Equally many entries in each segment of 256 columns: one-byte columns without pointers, one row of x at a time.
#include "gather.h"
#include "linear.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kAhead = 1024;  // entries fetched ahead; beyond the end a prefetch does nothing

template <class T>
SW_INLINE float row(const float* x, const int32_t* starts, int64_t segments, const uint8_t* columns, const T* values) {
    Gathered sums;
    for (int64_t s = 0; s < segments; ++s, x += 256) {
        int64_t e = starts[s];
        const int64_t end = starts[s + 1];
        __builtin_prefetch(columns + e + kAhead);
        for (; e + Gathered::kStep <= end; e += Gathered::kStep) {
            __builtin_prefetch(values + e + kAhead);
            sums.step(x, columns + e, values + e);
        }
        sums.last(x, columns + e, values + e, end - e);
    }
    return sums.total();
}

template <class T>
void run(const Balanced& a) {
    const T* values = static_cast<const T*>(a.values);
    const int64_t segments = (a.in + 255) / 256, per_row = a.starts[segments];
    split(a.out, a.threads, a.rows * a.out * per_row, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            for (int64_t m = 0; m < a.rows; ++m) {
                const float sum = row(a.x + m * a.in, a.starts, segments, a.columns + n * per_row, values + n * per_row);
                a.y[m * a.out + n] = (a.scale ? sum * a.scale[n] : sum) + (a.bias ? a.bias[n] : 0.0f);
            }
        }
    });
}

}  // namespace

void segmented(const Balanced& a) { a.scale ? run<int8_t>(a) : a.bf16 ? run<uint16_t>(a) : run<float>(a); }

}  // namespace sparseworks::SW_ISA
