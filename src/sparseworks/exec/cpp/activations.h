// The activations between sparse layers and their slopes, a vector at a time.
#pragma once
#include "simd.h"

namespace {

enum class Activation : int { gelu = 0, gelu_tanh = 1, relu = 2, silu = 3 };

template <int N>
SW_INLINE Lanes polynomial(const float (&highest_first)[N], Lanes x) {
    Lanes p = all(highest_first[0]);
    each<N - 1>([&](auto i) { p = multiply_add(p, x, all(highest_first[i + 1])); });
    return p;
}

// erf(x / sqrt 2) as x P(x^2) / Q(x^2) up to 5.5, to 4e-7; half the time of the form with e^(-x^2).
SW_INLINE Lanes error_function(Lanes x) {
    const float p[] = {1.46867669e-05f, 8.18517234e-04f, 1.22863203e-02f, 1.16261825e-01f, 7.97883153e-01f};
    const float q[] = {6.03219917e-07f, 1.46985622e-04f, 3.25647858e-03f, 4.24799919e-02f, 3.12368155e-01f, 1.0f};
    const Lanes c = lesser(all(5.5f), greater(all(-5.5f), x)), s = c * c;
    return c * polynomial(p, s) / polynomial(q, s);
}

// 1 / (1 + e^-x), by e^-|x|, which cannot overflow.
SW_INLINE Lanes logistic(Lanes x) {
    const Lanes e = exponential(x < 0.0f ? x : -x);
    return (x < 0.0f ? e : all(1.0f)) / (e + 1.0f);
}

template <Activation A>
SW_INLINE Lanes activate(Lanes x) {
    if constexpr (A == Activation::relu) return x < 0.0f ? zero() : x;
    if constexpr (A == Activation::silu) return x * logistic(x);
    if constexpr (A == Activation::gelu_tanh) return x * logistic(1.59576912f * (x * x * x * 0.044715f + x));
    if constexpr (A == Activation::gelu) return 0.5f * x * (1.0f + error_function(x));
}

struct Sloped {
    Lanes value, slope;
};

// x P(x) and P(x) + x p(x) with the normal distribution P and its density p, which share e^(-x^2 / 2): P by 7.1.26 of Abramowitz and
// Stegun (1964), to 8e-8.
SW_INLINE Sloped gelu_with_slope(Lanes x) {
    const Lanes size = x < 0.0f ? -x : x, e = exponential(-0.5f * x * x);
    const Lanes t = 1.0f / multiply_add(size, all(0.3275911f * 0.70710678f), all(1.0f));
    const float tail[] = {0.5f * 1.061405429f, 0.5f * -1.453152027f, 0.5f * 1.421413741f, 0.5f * -0.284496736f, 0.5f * 0.254829592f};
    const Lanes below = polynomial(tail, t) * t * e, p = x < 0.0f ? below : 1.0f - below;
    return {x * p, multiply_add(x * 0.39894228f, e, p)};
}

template <Activation A>
SW_INLINE Sloped activate_with_slope(Lanes x) {
    if constexpr (A == Activation::relu) return {activate<A>(x), x > 0.0f ? all(1.0f) : zero()};
    if constexpr (A == Activation::silu) {
        const Lanes s = logistic(x);
        return {x * s, s * (1.0f + x * (1.0f - s))};
    }
    if constexpr (A == Activation::gelu_tanh) {
        const Lanes s = logistic(1.59576912f * (x * x * x * 0.044715f + x));
        return {x * s, s * (1.0f + x * (1.0f - s) * 1.59576912f * (1.0f + 3.0f * 0.044715f * x * x))};
    }
    if constexpr (A == Activation::gelu) return gelu_with_slope(x);
}

// body(std::integral_constant<Activation, A>)
template <class Body>
SW_INLINE void with_activation(Activation a, const Body& body) {
    switch (a) {
        case Activation::gelu: return body(std::integral_constant<Activation, Activation::gelu>{});
        case Activation::gelu_tanh: return body(std::integral_constant<Activation, Activation::gelu_tanh>{});
        case Activation::relu: return body(std::integral_constant<Activation, Activation::relu>{});
        default: return body(std::integral_constant<Activation, Activation::silu>{});
    }
}

}  // namespace
