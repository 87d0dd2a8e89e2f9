// A sparse matrix times one tile: per kept weight one broadcast and contiguous multiply-adds over tokens. A K-block of the tile
// stays near, the sums of a stripe of outputs stay in L2.
#pragma once
#include "tiles.h"

namespace {

constexpr int64_t kAhead = 256;   // entries fetched ahead

// Independent sums per vector: eight chains hide the latency of a multiply-add.
template <int V>
constexpr int kChains = V >= 8 ? 1 : V == 4 ? 2 : 4;

template <int V, int N, int C>
SW_INLINE void entries(const float* x, const uint8_t* columns, const float* values, Lanes (&sums)[C][V]) {
    each<N>([&](auto u) {
        const float* lane = x + static_cast<int64_t>(columns[u]) * (V * W);
        const Lanes w = all(values[u]);
        each<V>([&](auto v) { sums[u % C][v] = multiply_add(w, load(lane + W * v), sums[u % C][v]); });
    });
}

// One segment, added to what is there (or to `start` if it is the row's first).
template <int V>
SW_INLINE void segment(const float* x, const uint8_t* columns, const float* values, int64_t n, bool first, float start, float* to) {
    constexpr int C = kChains<V>;
    Lanes sums[C][V];
    each<C>([&](auto c) { each<V>([&](auto v) { sums[c][v] = zero(); }); });
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) entries<V, 4>(x, columns + i, values + i, sums);
    if (n & 2) entries<V, 2>(x, columns + i, values + i, sums), i += 2;
    if (n & 1) entries<V, 1>(x, columns + i, values + i, sums);
    each<V>([&](auto v) {
        each<C - 1>([&](auto c) { sums[0][v] += sums[c + 1][v]; });
        store(to + W * v, sums[0][v] + (first ? all(start) : load(to + W * v)));  // last: nothing waits for L2
    });
}

// One cell: the sums of its rows grow in `sums`, [row within the block][token].
template <int V>
void cell(const Index& w, const float* values, const float* bias, const float* x, int64_t block, int64_t kb, float* sums) {
    constexpr int64_t T = V * W;
    const int64_t k_blocks = (w.width + w.k_block - 1) / w.k_block;
    const int64_t first = block * w.row_block, height = smaller(w.rows - first, w.row_block), s = first * k_blocks + kb * height;
    const int64_t e = w.first[block * k_blocks + kb], after = smaller(w.width - (kb + 1) * w.k_block, w.k_block);
    const float* part = x + kb * w.k_block * T;
    const uint8_t* columns = w.columns + e;
    values += e;
    Next next(part + w.k_block * T, after > 0 ? after * T : 0, height);
    for (int64_t i = s; i < s + height; ++i) {
        const int64_t row = w.row_of[i], n = w.count[i];
        next.row();
        __builtin_prefetch(values + kAhead);
        __builtin_prefetch(columns + 2 * kAhead);
        segment<V>(part, columns, values, n, kb == 0, bias ? bias[first + row] : 0.0f, sums + row * T);
        columns += n, values += n;
    }
}

// Row blocks [from, to) of w times a tile; `sums` begins at block `from`, [row][token].
template <int V>
void multiply(const Index& w, const float* values, const float* bias, const float* x, int64_t from, int64_t to, float* sums) {
    const int64_t k_blocks = (w.width + w.k_block - 1) / w.k_block, tall = stripe_blocks(w);
    for (int64_t stripe = from; stripe < to; stripe += tall) {
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            for (int64_t b = stripe; b < smaller(stripe + tall, to); ++b) {
                cell<V>(w, values, bias, x, b, kb, sums + (b - from) * w.row_block * V * W);
            }
        }
    }
}

}  // namespace
