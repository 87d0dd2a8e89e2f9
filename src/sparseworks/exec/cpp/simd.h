// Vectors of the instruction set that a file is compiled for, in the compiler's own vector extension: one source gives SSE2 and
// NEON (4 lanes), AVX2 (8) and AVX-512 (16). Kernels built on this are compiled once for each, into a namespace of their own.
#pragma once
#include <cmath>
#include <cstring>

#include "common.h"
#include "parallel.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(SW_ISA_AVX512)
#define SW_ISA avx512
#define SW_LANES 16
#elif defined(SW_ISA_WIDE)
#define SW_ISA wide
#define SW_LANES 16
#elif defined(SW_ISA_AVX2)
#define SW_ISA avx2
#define SW_LANES 8
#else
#define SW_ISA base
#define SW_LANES 4
#endif

namespace {

constexpr int W = SW_LANES;

using Lanes = float __attribute__((vector_size(4 * W)));
using Ints = int32_t __attribute__((vector_size(4 * W)));
// typedef, not using: there clang does not lower the alignment.
typedef float Unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(W), aligned(1), may_alias));

SW_INLINE Lanes zero() { return Lanes{}; }
SW_INLINE Lanes all(float x) { return x - Lanes{}; }  // minus: -0.0f stays
SW_INLINE Lanes load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
SW_INLINE void store(float* p, Lanes v) { *reinterpret_cast<Unaligned*>(p) = v; }
SW_INLINE Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return a * b + c; }  // fused where the processor can
// NaN in b stays.
#if SW_LANES == 8
SW_INLINE Lanes greater(Lanes a, Lanes b) { return _mm256_max_ps(a, b); }
SW_INLINE Lanes lesser(Lanes a, Lanes b) { return _mm256_min_ps(a, b); }
#else
SW_INLINE Lanes greater(Lanes a, Lanes b) { return a > b ? a : b; }
SW_INLINE Lanes lesser(Lanes a, Lanes b) { return a < b ? a : b; }
#endif

SW_INLINE Ints bits(Lanes v) { return reinterpret_cast<Ints>(v); }
SW_INLINE Lanes floats(Ints v) { return reinterpret_cast<Lanes>(v); }

// Eight lanes of bfloat16, or of int8, widened.
SW_INLINE Lanes load(const uint16_t* p) {
    return floats(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Ints) << 16);
}
SW_INLINE Lanes load(const int8_t* p) {
#if SW_LANES == 8
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Ints), Lanes);
#endif
}

SW_INLINE float widen(float x) { return x; }
SW_INLINE float widen(uint16_t x) {
    const uint32_t word = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}
SW_INLINE float widen(int8_t x) { return x; }

// The first n lanes; the others are zero, or are not written. n may be larger than W.
template <class T>
SW_INLINE Lanes load_first(const T* p, int64_t n) {
    if (n >= W) return load(p);
    Lanes v = zero();
    for (int i = 0; i < n; ++i) v[i] = widen(p[i]);
    return v;
}
SW_INLINE void store_first(float* p, Lanes v, int64_t n) {
    if (n >= W) return store(p, v);
    for (int i = 0; i < n; ++i) p[i] = v[i];
}

SW_INLINE float sum(Lanes v) {
#if SW_LANES == 8
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float half[W];
    store(half, v);
    for (int n = W / 2; n; n /= 2) {
        for (int i = 0; i < n; ++i) half[i] += half[i + n];
    }
    return half[0];
#endif
}

// The sums of four vectors, added to four numbers.
SW_INLINE void add_sums(const Lanes (&v)[4], float* to) {
#if SW_LANES == 8
    const __m256 half = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), four));
#else
    each<4>([&](auto i) { to[i] += sum(v[i]); });
#endif
}

SW_INLINE float largest(Lanes v) {
    float most = v[0];
    for (int i = 1; i < W; ++i) most = v[i] > most ? v[i] : most;
    return most;
}

// Lane j of the result: lane I of a, or lane I - W of b.
template <int... I>
SW_INLINE Lanes pick(Lanes a, Lanes b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, Ints{I...});
#endif
}
template <int H, int... J>
SW_INLINE void exchange(Lanes& a, Lanes& b, std::integer_sequence<int, J...>) {
    const Lanes low = pick(a, b, std::integer_sequence<int, ((J & H) ? W + J - H : J)...>{});
    b = pick(a, b, std::integer_sequence<int, ((J & H) ? W + J : J + H)...>{});
    a = low;
}

// log2(W) rounds: round h exchanges elements (i, j) and (i + h, j - h).
SW_INLINE void transpose(Lanes (&r)[W]) {
    each<(W == 4 ? 2 : W == 8 ? 3 : 4)>([&](auto round) {
        constexpr int h = 1 << round;
        each<W>([&](auto i) {
            if constexpr ((i & h) == 0) exchange<h>(r[i], r[i + h], std::make_integer_sequence<int, W>{});
        });
    });
}

// Up to W x W from rows at one stride, transposed to rows at another; what does not exist is read as zero and not written. Counts
// may be larger than W.
SW_INLINE void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float* to, int64_t to_stride,
                         int64_t to_rows, int64_t to_cols) {
    Lanes r[W];
    if (rows >= W && cols >= W) {
        each<W>([&](auto i) { r[i] = load(from + i * from_stride); });
    } else {
        each<W>([&](auto i) { r[i] = i < rows ? load_first(from + i * from_stride, cols) : zero(); });
    }
    transpose(r);
    if (to_rows >= W && to_cols >= W) {
        each<W>([&](auto i) { store(to + i * to_stride, r[i]); });
    } else {
        each<W>([&](auto i) {
            if (i < to_rows) store_first(to + i * to_stride, r[i], to_cols);
        });
    }
}

// e^x for x <= 0: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; what float32 cannot hold is 0, NaN stays NaN.
SW_INLINE Lanes exponential(Lanes x) {
    const Lanes least = all(-87.0f), magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const Lanes kept = x < least ? least : x;
    const Lanes shifted = kept * 1.44269504f + magic, n = shifted - magic;
    Lanes r = kept - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Lanes p = all(1.0f / 720);
    const float taylor[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    each<6>([&](auto i) { p = p * r + taylor[i]; });
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    const Lanes value = p * floats(power);
    return x < least ? zero() : value;
}

}  // namespace
