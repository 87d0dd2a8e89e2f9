// The product of two tiles at the entries of a support (sampled dense-dense product). A row's tokens stay in registers while its
// entries pass.
#pragma once
#include "tiles.h"

namespace {

constexpr int64_t kRowsAhead = 4;  // rows come in the order of their counts, which the processor cannot foresee

// One cell for one tile: sets the gradient, or adds to it.
template <int V>
void sample(const Index& w, const float* dy, const float* x, bool add, int64_t block, int64_t kb, float* gradient) {
    constexpr int64_t T = V * W;
    const int64_t k_blocks = (w.width + w.k_block - 1) / w.k_block;
    const int64_t first = block * w.row_block, height = smaller(w.rows - first, w.row_block), s = first * k_blocks + kb * height;
    x += kb * w.k_block * T;
    dy += first * T;
    int64_t at = w.first[block * k_blocks + kb];
    const int64_t after = smaller(w.width - (kb + 1) * w.k_block, w.k_block);
    Next next(x + w.k_block * T, after > 0 ? after * T : 0, height);
    for (int64_t i = s; i < s + height; ++i) {
        const int64_t n = w.count[i];
        if (n == 0) break;  // counts fall
        next.row();
        const float* row = dy + w.row_of[i] * T;
        const float* soon = dy + w.row_of[smaller(i + kRowsAhead, s + height - 1)] * T;
        each<(V * W + 15) / 16>([&](auto line) { __builtin_prefetch(soon + 16 * line); });
        const uint8_t* columns = w.columns + at;
        float* to = gradient + at;
        at += n;
        Lanes g[V];
        each<V>([&](auto v) { g[v] = load(row + W * v); });
        const auto dot = [&](int64_t e) __attribute__((always_inline)) {
            const float* lane = x + static_cast<int64_t>(columns[e]) * T;
            Lanes even = g[0] * load(lane), odd = zero();
            if constexpr (V > 1) odd = g[1] * load(lane + W);
            each<(V > 2 ? V - 2 : 0)>([&](auto v) {
                Lanes& chain = v % 2 ? odd : even;
                chain = multiply_add(g[v + 2], load(lane + W * (v + 2)), chain);
            });
            return Lanes(even + odd);
        };
        if (!add) std::memset(to, 0, n * sizeof(float));
        int64_t e = 0;
        for (; e + 4 <= n; e += 4) {
            Lanes dots[4];
            each<4>([&](auto u) { dots[u] = dot(e + u); });
            add_sums(dots, to + e);
        }
        for (; e < n; ++e) to[e] += sum(dot(e));
    }
}

// All cells of one tile, added to the gradient.
template <int V>
void sample_all(const Index& w, const float* dy, const float* x, float* gradient) {
    const int64_t k_blocks = (w.width + w.k_block - 1) / w.k_block;
    for (int64_t b = 0; b < row_blocks(w); ++b) {
        for (int64_t kb = 0; kb < k_blocks; ++kb) sample<V>(w, dy, x, true, b, kb, gradient);
    }
}

}  // namespace
