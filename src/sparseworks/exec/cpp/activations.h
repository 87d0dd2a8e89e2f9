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

template <Activation A>
SW_INLINE Lanes slope(Lanes x) {
    if constexpr (A == Activation::relu) return x > 0.0f ? all(1.0f) : zero();
    if constexpr (A == Activation::silu) {
        const Lanes s = logistic(x);
        return s * (1.0f + x * (1.0f - s));
    }
    if constexpr (A == Activation::gelu_tanh) {
        const Lanes s = logistic(1.59576912f * (x * x * x * 0.044715f + x));
        return s * (1.0f + x * (1.0f - s) * 1.59576912f * (1.0f + 3.0f * 0.044715f * x * x));
    }
    if constexpr (A == Activation::gelu) {
        const Lanes density = 0.39894228f * exponential(-0.5f * x * x);
        return 0.5f * (1.0f + error_function(x)) + x * density;
    }
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
