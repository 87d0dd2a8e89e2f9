// A sparse matrix times tiles of activations: per kept weight one broadcast and contiguous multiply-adds over tokens. A K-block of
// the tile stays in L1, the sums of a stripe of outputs stay in L2.
#include "tiles.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kStripe = 512;  // outputs whose sums are kept at once
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

template <int V>
void put(const Spmm& a, const float* sums, int64_t first, int64_t height, int64_t token, int64_t tokens) {
    constexpr int64_t T = V * W;
    if (a.positions) {
        for (int64_t r = 0; r < height; ++r) {
            for (int64_t t = 0; t < tokens;) {
                const int64_t image = (token + t) / a.positions, at = (token + t) % a.positions;
                const int64_t n = smaller(tokens - t, a.positions - at);
                std::memcpy(a.y + (image * a.w.rows + first + r) * a.positions + at, sums + r * T + t, n * sizeof(float));
                t += n;
            }
        }
        return;
    }
    for (int64_t t = 0; t < tokens; t += W) {
        for (int64_t r = 0; r < height; r += W) {
            transpose(sums + r * T + t, T, height - r, W, a.y + (token + t) * a.w.rows + first + r, a.w.rows, tokens - t, height - r);
        }
    }
}

// One cell for one tile: the sums of its rows grow in `sums`.
template <int V>
void cell(const Spmm& a, int64_t block, int64_t kb, int64_t k_blocks, int64_t token, float* sums) {
    constexpr int64_t T = V * W;
    const Index& w = a.w;
    const int64_t first = block * w.row_block, height = smaller(w.rows - first, w.row_block), s = first * k_blocks + kb * height;
    const float* x = a.x + token * w.width + kb * w.k_block * T;
    const int64_t e = w.first[block * k_blocks + kb];
    const uint8_t* columns = w.columns + e;
    const float* values = a.values + e;
    const int64_t after = smaller(w.width - (kb + 1) * w.k_block, w.k_block);
    Next next(x + w.k_block * T, after > 0 ? after * T : 0, height);
    for (int64_t i = s; i < s + height; ++i) {
        const int64_t row = w.row_of[i], n = w.count[i];
        next.row();
        __builtin_prefetch(values + kAhead);
        __builtin_prefetch(columns + 2 * kAhead);
        segment<V>(x, columns, values, n, kb == 0, a.bias ? a.bias[first + row] : 0.0f, sums + row * T);
        columns += n, values += n;
    }
    if (kb + 1 == k_blocks) put<V>(a, sums, first, height, token, smaller(a.tokens - token, T));
}

}  // namespace

void spmm(const Spmm& a) {
    const Index& w = a.w;
    const int64_t blocks = (w.rows + w.row_block - 1) / w.row_block, tiles = (a.tokens + kTile - 1) / kTile;
    const int64_t k_blocks = (w.width + w.k_block - 1) / w.k_block, tall = kStripe / w.row_block > 0 ? kStripe / w.row_block : 1;
    split(tiles * blocks, a.threads, a.tokens * w.rows * 8, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* sums = scratch.floats(tall * w.row_block * kTile);
        while (begin < end) {
            const int64_t token = begin / blocks * kTile, from = begin % blocks, to = smaller(from + end - begin, blocks);
            with_vectors(a.tokens - token, [&](auto v) {
                for (int64_t stripe = from; stripe < to; stripe += tall) {
                    for (int64_t kb = 0; kb < k_blocks; ++kb) {
                        for (int64_t b = stripe; b < smaller(stripe + tall, to); ++b) {
                            cell<v>(a, b, kb, k_blocks, token, sums + (b - stripe) * w.row_block * kTile);
                        }
                    }
                }
            });
            begin += to - from;
        }
    });
}

}  // namespace sparseworks::SW_ISA
