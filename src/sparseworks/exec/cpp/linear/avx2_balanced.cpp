// Equally many entries in each segment of 256 columns: one-byte columns without pointers, eight lanes filled by scalar loads.
#include "../avx2.h"
#include "linear.h"

namespace sparseworks::avx2 {
namespace {

SW_INLINE __m128 gather4(const float* x, uint32_t columns) {
    const __m128 a = _mm_insert_ps(_mm_load_ss(x + (columns & 0xFF)), _mm_load_ss(x + (columns >> 8 & 0xFF)), 0x10);
    const __m128 b = _mm_insert_ps(a, _mm_load_ss(x + (columns >> 16 & 0xFF)), 0x20);
    return _mm_insert_ps(b, _mm_load_ss(x + (columns >> 24)), 0x30);
}

SW_INLINE __m128 four(const float* x, const uint8_t* columns) {
    uint32_t word;
    __builtin_memcpy(&word, columns, 4);
    return gather4(x, word);
}

SW_INLINE __m256 eight(const float* x, const uint8_t* columns) {
    uint64_t word;
    __builtin_memcpy(&word, columns, 8);
    return _mm256_set_m128(gather4(x, static_cast<uint32_t>(word >> 32)), gather4(x, static_cast<uint32_t>(word)));
}

SW_INLINE __m128 half(const float* p) { return _mm_loadu_ps(p); }
SW_INLINE __m128 half(const uint16_t* p) {
    return _mm_castsi128_ps(
        _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 16));
}
SW_INLINE __m128 half(const int8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(word)));
}

constexpr int64_t kAhead = 1024;  // entries fetched ahead; beyond the end a prefetch does nothing

template <class Value>
SW_INLINE float row(const float* x, const int32_t* starts, int64_t segments, const uint8_t* columns,
                    const typename Value::Type* values) {
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    __m128 rest = _mm_setzero_ps();
    for (int64_t s = 0; s < segments; ++s, x += 256) {
        int64_t e = starts[s];
        const int64_t end = starts[s + 1];
        _mm_prefetch(reinterpret_cast<const char*>(columns + e + kAhead), _MM_HINT_T0);
        for (; e + 16 <= end; e += 16) {
            _mm_prefetch(reinterpret_cast<const char*>(values + e + kAhead), _MM_HINT_T0);
            even = _mm256_fmadd_ps(eight(x, columns + e), Value::load8(values + e), even);
            odd = _mm256_fmadd_ps(eight(x, columns + e + 8), Value::load8(values + e + 8), odd);
        }
        if (e + 8 <= end) even = _mm256_fmadd_ps(eight(x, columns + e), Value::load8(values + e), even), e += 8;
        if (e < end) rest = _mm_fmadd_ps(four(x, columns + e), half(values + e), rest);
    }
    return sum8(_mm256_add_ps(_mm256_add_ps(even, odd), _mm256_zextps128_ps256(rest)));
}

template <class Value>
void run(const Balanced& a) {
    const auto* values = static_cast<const typename Value::Type*>(a.values);
    const int64_t segments = (a.in + 255) / 256, per_row = a.starts[segments];
    split(a.out, a.threads, a.rows * a.out * per_row, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            for (int64_t m = 0; m < a.rows; ++m) {
                const float sum =
                    row<Value>(a.x + m * a.in, a.starts, segments, a.columns + n * per_row, values + n * per_row);
                a.y[m * a.out + n] = (a.scale ? sum * a.scale[n] : sum) + (a.bias ? a.bias[n] : 0.0f);
            }
        }
    });
}

}  // namespace

void segmented(const Balanced& a) { a.scale ? run<I8>(a) : a.bf16 ? run<BF16>(a) : run<F32>(a); }

}  // namespace sparseworks::avx2
