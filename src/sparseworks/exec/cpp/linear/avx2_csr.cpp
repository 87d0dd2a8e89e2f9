// One row of x at a time: eight lanes filled by scalar loads and insertps, which outruns the gather instruction on Zen.
#include "../avx2.h"
#include "linear.h"

namespace sparseworks::avx2 {
namespace {

SW_INLINE __m128 gather4(const float* x, uint64_t columns) {
    const __m128 a = _mm_insert_ps(_mm_load_ss(x + (columns & 0xFFFF)), _mm_load_ss(x + (columns >> 16 & 0xFFFF)), 0x10);
    const __m128 b = _mm_insert_ps(a, _mm_load_ss(x + (columns >> 32 & 0xFFFF)), 0x20);
    return _mm_insert_ps(b, _mm_load_ss(x + (columns >> 48)), 0x30);
}

SW_INLINE __m256 gather8(const float* x, const uint16_t* columns) {
    uint64_t low, high;
    __builtin_memcpy(&low, columns, 8);
    __builtin_memcpy(&high, columns + 4, 8);
    return _mm256_set_m128(gather4(x, high), gather4(x, low));
}

constexpr int64_t kAhead = 512;  // entries fetched ahead; beyond the end a prefetch does nothing

template <class Value>
float row(const float* x, const uint16_t* columns, const typename Value::Type* values, int64_t n) {
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        _mm_prefetch(reinterpret_cast<const char*>(columns + i + kAhead), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(values + i + kAhead), _MM_HINT_T0);
        even = _mm256_fmadd_ps(gather8(x, columns + i), Value::load8(values + i), even);
        odd = _mm256_fmadd_ps(gather8(x, columns + i + 8), Value::load8(values + i + 8), odd);
    }
    if (i < n) even = _mm256_fmadd_ps(gather8(x, columns + i), Value::load8(values + i), even);
    return sum8(_mm256_add_ps(even, odd));
}

template <class Value>
void run(const Csr& a) {
    const auto* values = static_cast<const typename Value::Type*>(a.values);
    const int64_t parts = a.threads, entries = a.ptr ? a.ptr[a.out] : a.slots * a.out;
    split(parts, a.threads, a.rows * entries * 4, [&](int64_t begin, int64_t end) {
        const int64_t first = balanced(a.ptr, a.out, begin, parts), last = balanced(a.ptr, a.out, end, parts);
        for (int64_t n = first; n < last; ++n) {
            const int64_t e = a.ptr ? a.ptr[n] : n * a.slots, count = a.ptr ? a.ptr[n + 1] - e : a.slots;
            const float start = a.bias ? a.bias[n] : 0.0f;
            for (int64_t m = 0; m < a.rows; ++m) {
                const float sum = row<Value>(a.x + m * a.in, a.columns + e, values + e, count);
                a.y[m * a.out + n] = start + (a.scale ? sum * a.scale[n] : sum);
            }
        }
    });
}

}  // namespace

void csr(const Csr& a) { a.scale ? run<I8>(a) : a.bf16 ? run<BF16>(a) : run<F32>(a); }

}  // namespace sparseworks::avx2
