// Shared by the kernels written in AVX2 intrinsics: values of either type, 8x8 transposes.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common.h"
#include "parallel.h"

// An unnamed namespace: nothing compiled with AVX2 may be merged with a baseline copy by the linker.
namespace {

struct F32 {
    using Type = float;
    static SW_INLINE __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
    static SW_INLINE __m256 broadcast(const float* p) { return _mm256_broadcast_ss(p); }
    template <int N>
    static SW_INLINE void broadcast(const float* p, __m256 (&w)[N]) {  // four in one read
        if constexpr (N == 4) {
            const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
            each<4>([&](auto i) { w[i] = _mm256_permute_ps(four, i * 0x55); });
        } else {
            each<N>([&](auto i) { w[i] = broadcast(p + i); });
        }
    }
};

struct BF16 {
    using Type = uint16_t;
    static SW_INLINE __m256 load8(const uint16_t* p) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static SW_INLINE __m256 broadcast(const uint16_t* p) {  // each 32-bit lane holds the value twice; keep the upper half
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(static_cast<short>(*p)), 16));
    }
    template <int N>
    static SW_INLINE void broadcast(const uint16_t* p, __m256 (&w)[N]) {  // two in one read, N even
        each<N / 2>([&](auto i) {
            int32_t two;
            std::memcpy(&two, p + 2 * i, 4);
            const __m256i both = _mm256_set1_epi32(two);
            w[2 * i] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
            w[2 * i + 1] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000))));
        });
    }
};

struct I8 {  // whole numbers; the caller applies the row's scale
    using Type = int8_t;
    static SW_INLINE __m256 load8(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static SW_INLINE __m256 broadcast(const int8_t* p) { return _mm256_set1_ps(static_cast<float>(*p)); }
};

SW_INLINE float sum8(__m256 v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

SW_INLINE __m256i first_lanes(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

SW_INLINE void transpose8(__m256 (&r)[8]) {
    const __m256 a0 = _mm256_unpacklo_ps(r[0], r[1]), a1 = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 a2 = _mm256_unpacklo_ps(r[2], r[3]), a3 = _mm256_unpackhi_ps(r[2], r[3]);
    const __m256 a4 = _mm256_unpacklo_ps(r[4], r[5]), a5 = _mm256_unpackhi_ps(r[4], r[5]);
    const __m256 a6 = _mm256_unpacklo_ps(r[6], r[7]), a7 = _mm256_unpackhi_ps(r[6], r[7]);
    const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xEE);
    const __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xEE);
    const __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xEE);
    const __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xEE);
    r[0] = _mm256_permute2f128_ps(b0, b4, 0x20), r[4] = _mm256_permute2f128_ps(b0, b4, 0x31);
    r[1] = _mm256_permute2f128_ps(b1, b5, 0x20), r[5] = _mm256_permute2f128_ps(b1, b5, 0x31);
    r[2] = _mm256_permute2f128_ps(b2, b6, 0x20), r[6] = _mm256_permute2f128_ps(b2, b6, 0x31);
    r[3] = _mm256_permute2f128_ps(b3, b7, 0x20), r[7] = _mm256_permute2f128_ps(b3, b7, 0x31);
}

// Up to 8x8 from `from` (rows at stride `from_stride`) transposed to `to`; rows and columns that do not exist are zero
// on reading and skipped on writing.
SW_INLINE void transpose_block(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float* to,
                               int64_t to_stride, int64_t to_rows, int64_t to_cols) {
    __m256 r[8];
    if (rows >= 8 && cols >= 8) {
        each<8>([&](auto i) { r[i] = _mm256_loadu_ps(from + i * from_stride); });
    } else {
        const __m256i mask = first_lanes(cols);
        each<8>([&](auto i) { r[i] = i < rows ? _mm256_maskload_ps(from + i * from_stride, mask) : _mm256_setzero_ps(); });
    }
    transpose8(r);
    if (to_rows >= 8 && to_cols >= 8) {
        each<8>([&](auto i) { _mm256_storeu_ps(to + i * to_stride, r[i]); });
    } else {
        const __m256i mask = first_lanes(to_cols);
        each<8>([&](auto i) {
            if (i < to_rows) _mm256_maskstore_ps(to + i * to_stride, mask, r[i]);
        });
    }
}

// x (tokens, width) at `stride` -> feature-major tile [width][T]; missing tokens are zero. Along eight rows of x: eight streams
// are fetched by the processor itself, lines of rows a multiple of 4 KiB apart are not.
template <int T>
void pack_tokens(const float* x, int64_t stride, int64_t width, int64_t tokens, float* tile) {
    for (int64_t t = 0; t < T; t += 8) {
        for (int64_t k = 0; k < width; k += 8) {
            transpose_block(x + t * stride + k, stride, tokens - t, width - k, tile + k * T + t, T, width - k, 8);
        }
    }
}

// Feature-major [height][T] -> y (tokens, out) at stride `out`.
template <int T>
void unpack_tokens(const float* tile, int64_t height, int64_t tokens, float* y, int64_t out) {
    for (int64_t n = 0; n < height; n += 16) {
        for (int64_t t = 0; t < T && t < tokens; t += 8) {
            for (int64_t r = n; r < n + 16 && r < height; r += 8) {
                transpose_block(tile + r * T + t, T, height - r, 8, y + t * out + r, out, tokens - t, height - r);
            }
        }
    }
}

}  // namespace
