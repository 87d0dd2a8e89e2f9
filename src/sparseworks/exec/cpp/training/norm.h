// LayerNorm of a tile (Ba et al. 2016, arXiv 1607.06450): lanes are tokens, so that sums over features stay within their lanes.
#pragma once
#include <cmath>

#include "tiles.h"

namespace {

// body(first vector, std::integral_constant<int, G>): groups of up to four vectors, whose sums fit the registers.
template <int V, class Body>
SW_INLINE void vector_groups(const Body& body) {
    constexpr int G = V < 4 ? V : 4;
    each<V / G>([&](auto i) { body(i * G * W, std::integral_constant<int, G>{}); });
}

// x to (x - mean) / sqrt(var + eps) over its features; `scale` takes 1 / sqrt(var + eps) of each token.
template <int V>
void normalise(float* x, int64_t width, float eps, float* scale) {
    const Lanes share = all(1.0f / static_cast<float>(width));
    vector_groups<V>([&](int64_t at, auto group) {
        constexpr int G = group();
        float* lane = x + at;
        Lanes mean[G], squares[G];
        each<G>([&](auto v) { mean[v] = zero(), squares[v] = zero(); });
        for (int64_t c = 0; c < width; ++c) {
            each<G>([&](auto v) { mean[v] += load(lane + c * V * W + v * W); });
        }
        each<G>([&](auto v) { mean[v] *= share; });
        for (int64_t c = 0; c < width; ++c) {
            each<G>([&](auto v) {
                const Lanes d = load(lane + c * V * W + v * W) - mean[v];
                squares[v] = multiply_add(d, d, squares[v]);
            });
        }
        each<G>([&](auto v) {
            Lanes& factor = squares[v];
            factor = factor * share + all(eps);
            for (int i = 0; i < W; ++i) factor[i] = 1.0f / std::sqrt(factor[i]);
            store(scale + at + v * W, factor);
        });
        for (int64_t c = 0; c < width; ++c) {
            each<G>([&](auto v) {
                float* to = lane + c * V * W + v * W;
                store(to, (load(to) - mean[v]) * squares[v]);
            });
        }
    });
}

// weight x + bias, one of each a feature.
template <int V>
void stretch(const float* x, int64_t width, const float* weight, const float* bias, float* to) {
    for (int64_t c = 0; c < width; ++c, x += V * W, to += V * W) {
        const Lanes w = all(weight[c]), b = all(bias[c]);
        each<V>([&](auto v) { store(to + v * W, multiply_add(load(x + v * W), w, b)); });
    }
}

// The gradient of the output to that of the input, in place; adds to those of weight and bias. `x` is normalised.
template <int V>
void norm_gradient(float* dy, const float* x, int64_t width, const float* weight, const float* scale, float* dweight, float* dbias) {
    const Lanes share = all(1.0f / static_cast<float>(width));
    vector_groups<V>([&](int64_t at, auto group) {
        constexpr int G = group();
        Lanes mean[G], slope[G];
        each<G>([&](auto v) { mean[v] = zero(), slope[v] = zero(); });
        for (int64_t c = 0; c < width; ++c) {
            const Lanes w = all(weight[c]);
            Lanes plain = zero(), product = zero();
            each<G>([&](auto v) {
                const Lanes d = load(dy + c * V * W + at + v * W), dx = d * load(x + c * V * W + at + v * W);
                plain += d, product += dx;
                mean[v] = multiply_add(d, w, mean[v]);
                slope[v] = multiply_add(dx, w, slope[v]);
            });
            dbias[c] += sum(plain), dweight[c] += sum(product);
        }
        each<G>([&](auto v) { mean[v] *= share, slope[v] *= share; });
        for (int64_t c = 0; c < width; ++c) {
            const Lanes w = all(weight[c]);
            each<G>([&](auto v) {
                float* to = dy + c * V * W + at + v * W;
                const Lanes d = load(to) * w - mean[v] - load(x + c * V * W + at + v * W) * slope[v];
                store(to, d * load(scale + at + v * W));
            });
        }
    });
}

}  // namespace
