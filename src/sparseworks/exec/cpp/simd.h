// Vectors of the instruction set that a file is compiled for, in the compiler's own vector extension: one source gives SSE2 and
// NEON (4 lanes), AVX2 (8) and AVX-512 (16). Kernels built on this are compiled once for each, into a namespace of their own.
#pragma once
#include <cmath>
#include <cstring>

#include "common.h"
#include "parallel.h"
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "several small numbers are read as one");

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

// Registers for vectors. GCC leaves eight of the 32 of 64-bit ARM alone, which a function would have to save.
#if defined(__aarch64__) || SW_LANES == 16
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

using Lanes = float __attribute__((vector_size(4 * W)));
using Ints = int32_t __attribute__((vector_size(4 * W)));
using Quad = float __attribute__((vector_size(16)));
// typedef, not using: there clang does not lower the alignment.
typedef float Unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t UnalignedInts __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(W), aligned(1), may_alias));

SW_INLINE Lanes zero() { return Lanes{}; }
SW_INLINE Lanes all(float x) { return x - Lanes{}; }  // minus: -0.0f stays
SW_INLINE Lanes load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
SW_INLINE void store(float* p, Lanes v) { *reinterpret_cast<Unaligned*>(p) = v; }
SW_INLINE Ints load(const int32_t* p) { return *reinterpret_cast<const UnalignedInts*>(p); }
SW_INLINE void store(int32_t* p, Ints v) { *reinterpret_cast<UnalignedInts*>(p) = v; }
SW_INLINE Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return a * b + c; }  // fused where the processor can
// NaN in b stays.
#if SW_LANES == 8
SW_INLINE Lanes greater(Lanes a, Lanes b) { return _mm256_max_ps(a, b); }
SW_INLINE Lanes lesser(Lanes a, Lanes b) { return _mm256_min_ps(a, b); }
#elif defined(SW_ISA_AVX512)
SW_INLINE Lanes greater(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
SW_INLINE Lanes lesser(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
#else
SW_INLINE Lanes greater(Lanes a, Lanes b) { return a > b ? a : b; }
SW_INLINE Lanes lesser(Lanes a, Lanes b) { return a < b ? a : b; }
#endif

SW_INLINE Ints bits(Lanes v) { return reinterpret_cast<Ints>(v); }
SW_INLINE Lanes floats(Ints v) { return reinterpret_cast<Lanes>(v); }

// W numbers of bfloat16, or of int8, widened. In eight lanes GCC 12 does it in halves where one instruction would do.
SW_INLINE Lanes load(const uint16_t* p) {
#if SW_LANES == 8
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#elif defined(SW_ISA_AVX512)
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#else
    return floats(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Ints) << 16);
#endif
}
SW_INLINE Lanes load(const int8_t* p) {
#if SW_LANES == 8
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(SW_ISA_AVX512)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Ints), Lanes);
#endif
}

// W finite numbers of fp16, widened.
SW_INLINE Lanes load_fp16(const uint16_t* p) {
#if SW_LANES == 8
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(SW_ISA_AVX512)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else  // the exponent's offset is a product with 2^112
    const Ints h = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Ints);
    return floats(bits(floats((h & 0x7fff) << 13) * 0x1p112f) | ((h & 0x8000) << 16));
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

// Four of them, widened.
using QuadInts = int32_t __attribute__((vector_size(16)));
typedef float FourFloats __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint16_t FourHalves __attribute__((vector_size(8), aligned(2), may_alias));
typedef int8_t FourBytes __attribute__((vector_size(4), aligned(1), may_alias));
SW_INLINE Quad load_four(const float* p) { return *reinterpret_cast<const FourFloats*>(p); }
SW_INLINE Quad load_four(const uint16_t* p) {
    return reinterpret_cast<Quad>(__builtin_convertvector(*reinterpret_cast<const FourHalves*>(p), QuadInts) << 16);
}
SW_INLINE Quad load_four(const int8_t* p) {
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const FourBytes*>(p), QuadInts), Quad);
}

// The first n lanes; the others are zero, or are not written. n may be larger than W.
#if SW_LANES == 8
SW_INLINE __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SW_INLINE Lanes load_first(const float* p, int64_t n) { return n >= W ? load(p) : Lanes(_mm256_maskload_ps(p, first_lanes(n))); }
#elif defined(SW_ISA_AVX512)
SW_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << (n > 0 ? n : 0)) - 1); }
SW_INLINE Lanes load_first(const float* p, int64_t n) { return n >= W ? load(p) : Lanes(_mm512_maskz_loadu_ps(first_lanes(n), p)); }
#endif
template <class T>
SW_INLINE Lanes load_first(const T* p, int64_t n) {
    if (n >= W) return load(p);
    Lanes v = zero();
    for (int i = 0; i < n; ++i) v[i] = widen(p[i]);
    return v;
}
SW_INLINE void store_first(float* p, Lanes v, int64_t n) {
    if (n >= W) return store(p, v);
#if SW_LANES == 8
    _mm256_maskstore_ps(p, first_lanes(n), v);
#elif defined(SW_ISA_AVX512)
    _mm512_mask_storeu_ps(p, first_lanes(n), v);
#else
    for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// N numbers, each in every lane of a vector.
template <int N, class T>
SW_INLINE void broadcast(const T* p, Lanes (&v)[N]) {
#if SW_LANES == 8
    if constexpr (sizeof(T) == 4 && N == 4) {  // four in one read
        const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
        return each<4>([&](auto i) { v[i] = _mm256_permute_ps(four, i * 0x55); });
    }
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {  // two in one read
        return each<N / 2>([&](auto i) {
            int32_t two;
            std::memcpy(&two, p + 2 * i, 4);
            const __m256i both = _mm256_set1_epi32(two);
            v[2 * i] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
            v[2 * i + 1] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000))));
        });
    }
#endif
    each<N>([&](auto i) { v[i] = all(widen(p[i])); });
}

// W / 4 vectors of four, side by side.
SW_INLINE Lanes join(const Quad (&part)[W / 4]) {
#if SW_LANES == 4
    return part[0];
#elif SW_LANES == 8
    return _mm256_set_m128(part[1], part[0]);
#elif defined(SW_ISA_AVX512)
    const __m512 low = _mm512_insertf32x4(_mm512_castps128_ps512(part[0]), part[1], 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(low, part[2], 2), part[3], 3);
#else
    Lanes v;
    std::memcpy(&v, part, sizeof v);
    return v;
#endif
}

#if SW_LANES > 4
SW_INLINE float sum(Quad v) { return (v[0] + v[1]) + (v[2] + v[3]); }
#endif

SW_INLINE float sum(Lanes v) {
#if SW_LANES == 8
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#elif defined(SW_ISA_AVX512)
    return _mm512_reduce_add_ps(v);
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
#if SW_LANES == 8 || defined(SW_ISA_AVX512)
#if SW_LANES == 8
    const auto eight = [&](int i) -> __m256 { return v[i]; };
#else
    const auto eight = [&](int i) -> __m256 { return _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1)); };
#endif
    const __m256 half = _mm256_hadd_ps(_mm256_hadd_ps(eight(0), eight(1)), _mm256_hadd_ps(eight(2), eight(3)));
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
