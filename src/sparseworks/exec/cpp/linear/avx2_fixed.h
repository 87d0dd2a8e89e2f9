// 16-bit fixed point: an entry is two weights, and one instruction multiplies two inputs of eight tokens with them: twice the
// rate of float32. Inputs are rounded per token to +-limit, which pack time chose so that no sum leaves 32 bits.
#pragma once
#include <cmath>
#include <cstring>

#include "avx2_tiles.h"

namespace {

using sparseworks::kTiny;

struct Pair {
    int16_t first, second;
};

struct Fixed {
    using Stored = Pair;
    using Cell = int32_t;
    using Lanes = __m256i;

    static constexpr bool kByBlock = false;  // scales are known once the whole of a token has been seen
    static constexpr int64_t kTile = kTokens;

    const float* row_scale;
    float limit;

    template <int N>
    static SW_INLINE void broadcast(const Pair* p, __m256i (&w)[N]) {
        if constexpr (N == 4) {  // four in one read
            const __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
            each<4>([&](auto i) { w[i] = _mm256_shuffle_epi32(four, i * 0x55); });
        } else {
            each<N>([&](auto i) {
                int32_t both;
                std::memcpy(&both, p + i, sizeof both);
                w[i] = _mm256_set1_epi32(both);
            });
        }
    }
    static SW_INLINE __m256i load(const int32_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
    static SW_INLINE void store(int32_t* p, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }
    static SW_INLINE __m256i zero() { return _mm256_setzero_si256(); }
    static SW_INLINE __m256i add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
    static SW_INLINE __m256i multiply_add(__m256i w, __m256i x, __m256i sum) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
        __asm__("" : "+x"(sum));  // GCC would add products of two entries first, and run out of registers for them
        return sum;
    }
    static SW_INLINE __m256i start(const float*, int64_t) { return zero(); }  // the bias is added to scaled sums

    // The whole tile at once: a token is scaled by its largest input.
    template <int T>
    Fetch pack(const Segments& a, int64_t kb, int64_t, int64_t token, int64_t tokens, int32_t* x, float* scales) const {
        for (int64_t t = 0; kb == 0 && t < T; t += 8) {
            const int64_t there = tokens - t < 8 ? tokens - t : 8;
            if (there > 0) eight<T>(a.x + (token + t) * a.in, a.in, there, x + t, scales + t);
        }
        return {};
    }

    // Eight tokens (fewer are repeated) -> cells [in / 2][T].
    template <int T>
    void eight(const float* x, int64_t in, int64_t there, int32_t* cells, float* scales) const {
        float inverse[8];
        for (int64_t t = 0; t < 8; ++t) {
            if (t >= there) {
                inverse[t] = 0.0f;
                continue;
            }
            const float most = largest(x + t * in, in);
            scales[t] = most / limit;
            inverse[t] = most > kTiny ? limit / most : 0.0f;  // of infinity or NaN: zeros, and a scale that makes NaN
            if (!(most < INFINITY)) scales[t] = NAN, inverse[t] = 0.0f;
        }
        for (int64_t k = 0; k < in; k += 16) {
            __m256 r[8];
            each<8>([&](auto t) {
                const float* at = x + (t < there ? t * in : 0) + k;
                const __m256 scale = _mm256_set1_ps(inverse[t]);
                const __m256 low = k + 8 <= in ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, first_lanes(in - k));
                const __m256 high = k + 16 <= in ? _mm256_loadu_ps(at + 8)
                                                 : _mm256_maskload_ps(at + 8, first_lanes(in - k - 8));
                const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(low, scale)),
                                                        _mm256_cvtps_epi32(_mm256_mul_ps(high, scale)));
                r[t] = _mm256_castsi256_ps(_mm256_permute4x64_epi64(both, 0xD8));
            });
            transpose8(r);
            each<8>([&](auto p) {
                if (k + 2 * p < in) store(cells + (k / 2 + p) * T, _mm256_castps_si256(r[p]));
            });
        }
    }

    // Largest absolute value, or NaN if there is one.
    static float largest(const float* x, int64_t n) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        __m256 most = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
        for (int64_t k = 0; k < n; k += 8) {
            const __m256 v = k + 8 <= n ? _mm256_loadu_ps(x + k) : _mm256_maskload_ps(x + k, first_lanes(n - k));
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v));
            odd = _mm256_or_ps(odd, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        }
        if (_mm256_movemask_ps(odd)) return NAN;
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    }

    // y = sum * (token scale) * (row scale) + bias.
    template <int T>
    void unpack(const Segments& a, const int32_t* sums, int64_t first, int64_t height, int64_t token, int64_t tokens,
                const float* scales) const {
        for (int64_t n = 0; n < height; n += 8) {
            const int64_t wide = height - n;
            const __m256i lanes = first_lanes(wide);
            const __m256 scale = _mm256_maskload_ps(row_scale + first + n, lanes);
            const __m256 bias = a.bias ? _mm256_maskload_ps(a.bias + first + n, lanes) : _mm256_setzero_ps();
            for (int64_t t = 0; t < tokens; t += 8) {
                __m256 r[8];
                each<8>([&](auto i) { r[i] = _mm256_cvtepi32_ps(load(sums + (i < wide ? n + i : n) * T + t)); });
                transpose8(r);
                each<8>([&](auto i) {
                    if (t + i >= tokens) return;
                    float* y = a.y + (token + t + i) * a.out + first + n;
                    const __m256 v = _mm256_fmadd_ps(_mm256_mul_ps(r[i], _mm256_set1_ps(scales[t + i])), scale, bias);
                    if (wide >= 8) _mm256_storeu_ps(y, v);
                    else _mm256_maskstore_ps(y, lanes, v);
                });
            }
        }
    }
};

}  // namespace
