// e^x and the activations built on it, eight at a time.
#pragma once
#include "avx2.h"

namespace {

// e^x for x <= 0: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; NaN stays NaN, what float32 cannot hold is 0.
SW_INLINE __m256 exponential(__m256 x) {
    const __m256 least = _mm256_set1_ps(-87.0f);
    const __m256 there = _mm256_cmp_ps(x, least, _CMP_NLT_UQ);
    x = _mm256_max_ps(least, x);
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 720);
    const float taylor[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    each<6>([&](auto i) { p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(taylor[i])); });
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(there, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

SW_INLINE __m256 absolute(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
SW_INLINE __m256 negative(__m256 x) { return _mm256_or_ps(_mm256_set1_ps(-0.0f), x); }  // -|x|

// x / 2 (1 + erf(x / sqrt 2)); erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
SW_INLINE __m256 gelu(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), u = _mm256_mul_ps(absolute(x), _mm256_set1_ps(0.70710678f));
    const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(u, _mm256_set1_ps(0.3275911f), one));
    __m256 p = _mm256_set1_ps(1.061405429f);
    const float terms[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    each<4>([&](auto i) { p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(terms[i])); });
    const __m256 rest = _mm256_mul_ps(_mm256_mul_ps(p, t), exponential(negative(_mm256_mul_ps(u, u))));  // 1 - erf |u|
    // x >= 0: x - x rest / 2; x < 0: x rest / 2.
    const __m256 part = _mm256_mul_ps(_mm256_mul_ps(absolute(x), rest), _mm256_set1_ps(0.5f));
    return _mm256_sub_ps(_mm256_max_ps(_mm256_setzero_ps(), x), part);
}

// x times the logistic function of `u`.
SW_INLINE __m256 gated(__m256 x, __m256 u) {
    const __m256 e = exponential(negative(u)), one = _mm256_set1_ps(1.0f);  // of u < 0: e / (1 + e)
    const __m256 above = _mm256_blendv_ps(one, e, u);
    return _mm256_div_ps(_mm256_mul_ps(x, above), _mm256_add_ps(one, e));
}

SW_INLINE __m256 gelu_tanh(__m256 x) {
    const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
    return gated(x, _mm256_mul_ps(_mm256_set1_ps(1.59576912f), _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x)));
}

SW_INLINE __m256 relu(__m256 x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }  // of NaN: NaN

}  // namespace
