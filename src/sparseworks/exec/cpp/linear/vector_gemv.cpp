// Dense weights and few rows of x: bound by reading the weights once. Eight rows of W are read side by side, since several
// sequential streams are prefetched better than one.
#include "../simd.h"
#include "linear.h"

namespace sparseworks::SW_ISA {
namespace {

template <int N, class T>
SW_INLINE void rows(const Dense& a, const T* weight, int64_t n) {
    const float* scale = a.scale ? a.scale + n : nullptr;
    for (int64_t m = 0; m < a.rows; ++m) {
        const float* x = a.x + m * a.in;
        Lanes sums[N];
        each<N>([&](auto i) { sums[i] = zero(); });
        int64_t k = 0;
        for (; k + W <= a.in; k += W) {
            const Lanes lanes = load(x + k);
            each<N>([&](auto i) { sums[i] = multiply_add(load(weight + i * a.in + k), lanes, sums[i]); });
        }
        if (k < a.in) {
            const Lanes lanes = load_first(x + k, a.in - k);
            each<N>([&](auto i) { sums[i] = multiply_add(load_first(weight + i * a.in + k, a.in - k), lanes, sums[i]); });
        }
        each<N>([&](auto i) {
            a.y[m * a.out + n + i] = sum(sums[i]) * (scale ? scale[i] : 1.0f) + (a.bias ? a.bias[n + i] : 0.0f);
        });
    }
}

template <class T>
void run(const Dense& a) {
    constexpr int kRows = 8;
    const T* weight = static_cast<const T*>(a.weight);
    const int64_t groups = (a.out + kRows - 1) / kRows;
    split(groups, a.threads, a.rows * a.in * a.out, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
            int64_t n = g * kRows;
            if (n + kRows <= a.out) {
                rows<kRows>(a, weight + n * a.in, n);
            } else {
                for (; n < a.out; ++n) rows<1>(a, weight + n * a.in, n);
            }
        }
    });
}

}  // namespace

void gemv(const Dense& a) {
    if (a.stored == Stored::fp32) return run<float>(a);
    if (a.stored == Stored::bf16) return run<uint16_t>(a);
    run<int8_t>(a);
}

}  // namespace sparseworks::SW_ISA
