// One bit per entry: the kept values of some columns are spread over the lanes of these. Up to four rows of x share the spreading.
#include "linear.h"
#include "spread.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kAhead = 1024;  // bytes of values fetched ahead; beyond the end a prefetch does nothing

// The bits of columns [k, k + W), as far as there are any in the row.
SW_INLINE uint32_t bits_at(const uint8_t* bits, int64_t k, int64_t in) {
    if constexpr (W == 4) return bits[k / 8] >> k % 8 & 15;
    if constexpr (W == 16) return bits[k / 8] | (k + 8 < in ? bits[k / 8 + 1] << 8 : 0);
    return bits[k / 8];
}

// R rows of x against one row of W.
template <int R, class T>
SW_INLINE void row(const Bitmask& a, int64_t n, int64_t m) {
    const uint8_t* bits = a.bits + n * a.row_bytes;
    const T* values = static_cast<const T*>(a.values) + (a.ptr ? a.ptr[n] : n * a.per_row);
    const float* x = a.x + m * a.in;
    constexpr int C = R == 1 ? 4 : R == 2 ? 2 : 1;
    Lanes sum[C][R];
    each<C>([&](auto c) { each<R>([&](auto r) { sum[c][r] = zero(); }); });
    int64_t k = 0;
    for (; k + 32 <= a.in; k += 32) {
        uint32_t word;
        std::memcpy(&word, bits + k / 8, 4);
        if constexpr (sizeof(T) > 1) {  // bytes arrive in time by themselves
            __builtin_prefetch(reinterpret_cast<const char*>(values) + kAhead);
        }
        each<32 / W>([&](auto b) {
            const uint32_t mask = word >> (W * b) & ((1u << W) - 1);
            const Lanes w = spread(values, mask);
            values += count(mask);
            each<R>([&](auto r) { sum[b % C][r] = multiply_add(w, load(x + r * a.in + k + W * b), sum[b % C][r]); });
        });
    }
    for (; k < a.in; k += W) {
        const uint32_t mask = bits_at(bits, k, a.in);
        const Lanes w = spread(values, mask);
        values += count(mask);
        each<R>([&](auto r) { sum[0][r] = multiply_add(w, load_first(x + r * a.in + k, a.in - k), sum[0][r]); });
    }
    each<R>([&](auto r) {
        each<C - 1>([&](auto c) { sum[0][r] += sum[c + 1][r]; });
        const float total = ::sum(sum[0][r]);
        a.y[(m + r) * a.out + n] = (a.bias ? a.bias[n] : 0.0f) + (a.scale ? total * kByteUnit * a.scale[n] : total);
    });
}

template <class T>
void run(const Bitmask& a) {
    split(a.out, a.threads, a.rows * a.out * a.row_bytes * 4, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            int64_t m = 0;
            for (; m + 4 <= a.rows; m += 4) row<4, T>(a, n, m);
            if (m + 2 <= a.rows) row<2, T>(a, n, m), m += 2;
            if (m < a.rows) row<1, T>(a, n, m);
        }
    });
}

}  // namespace

void bitmask(const Bitmask& a) { a.scale ? run<int8_t>(a) : a.bf16 ? run<uint16_t>(a) : run<float>(a); }

}  // namespace sparseworks::SW_ISA
