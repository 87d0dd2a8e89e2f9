// Tiles of eight vectors of tokens; a last tile of fewer tokens takes four, two or one.
#pragma once
#include "../simd.h"
#include "training.h"

namespace {

using sparseworks::Index;

constexpr int64_t kTile = 8 * W;
constexpr int64_t kStripe = 512;  // outputs whose sums are kept at once

SW_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

SW_INLINE int vectors_for(int64_t tokens) { return tokens > 4 * W ? 8 : tokens > 2 * W ? 4 : tokens > W ? 2 : 1; }

// body(std::integral_constant<int, V>) with the number of vectors of a tile of `tokens` tokens.
template <class Body>
SW_INLINE void with_vectors(int64_t tokens, const Body& body) {
    switch (vectors_for(tokens)) {
        case 8: return body(std::integral_constant<int, 8>{});
        case 4: return body(std::integral_constant<int, 4>{});
        case 2: return body(std::integral_constant<int, 2>{});
        default: return body(std::integral_constant<int, 1>{});
    }
}

// W rows at `stride` are read or written column by column, each in lines that the processor fetches one at a time: lines that come
// some columns later, after the last column those of the next rows, are asked for now.
template <bool Write>
SW_INLINE void fetch_ahead(const float* row, int64_t stride, int64_t rows, int64_t c, int64_t begin, int64_t end) {
    constexpr int64_t kLine = 16, kColumnsAhead = 64;
    if (c % kLine) return;
    const bool inside = c + kColumnsAhead < end;
    if (!inside) row += W * stride, rows -= W;
    const float* at = row + (inside ? c + kColumnsAhead : smaller(begin + c + kColumnsAhead - end, end - 1));
    if (rows < W) return;
    each<W>([&](auto i) { __builtin_prefetch(at + i * stride, Write, Write ? 3 : 2); });
}

// Columns [k, end) of a matrix (tokens, width) into a tile of `size` tokens; those that do not exist are zero.
inline void pack(const float* matrix, int64_t width, int64_t tokens, int64_t size, int64_t k, int64_t end, float* tile) {
    for (int64_t t = 0; t < size; t += W) {
        for (int64_t c = k; c < end; c += W) {
            fetch_ahead<false>(matrix + t * width, width, tokens - t, c, k, end);
            transpose(matrix + t * width + c, width, tokens - t, end - c, tile + c * size + t, size, end - c, W);
        }
    }
}

// Features of a tile into columns of a matrix at `stride`, plus those of `add` (may be null), which lie alike.
inline void unpack(const float* tile, int64_t features, int64_t tokens, int64_t size, float* matrix, int64_t stride,
                   const float* add = nullptr) {
    for (int64_t t = 0; t < tokens; t += W) {
        for (int64_t r = 0; r < features; r += W) {
            fetch_ahead<true>(matrix + t * stride, stride, tokens - t, r, 0, features);
            float* to = matrix + t * stride + r;
            if (add && tokens - t >= W && features - r >= W) {
                const float* from = add + t * stride + r;
                Lanes block[W];
                each<W>([&](auto i) { block[i] = load(tile + (r + i) * size + t); });
                transpose(block);
                each<W>([&](auto i) { store(to + i * stride, block[i] + load(from + i * stride)); });
                continue;
            }
            transpose(tile + r * size + t, size, features - r, W, to, stride, tokens - t, features - r);
            for (int64_t i = 0; add && i < smaller(W, tokens - t); ++i) {
                for (int64_t j = 0; j < smaller(W, features - r); ++j) to[i * stride + j] += add[(t + i) * stride + r + j];
            }
        }
    }
}

inline int64_t row_blocks(const Index& w) { return (w.rows + w.row_block - 1) / w.row_block; }
inline int64_t entry_count(const Index& w) { return w.first[row_blocks(w) * ((w.width + w.k_block - 1) / w.k_block)]; }
// Row blocks of a stripe, and its outputs.
inline int64_t stripe_blocks(const Index& w) { return kStripe / w.row_block > 0 ? kStripe / w.row_block : 1; }
inline int64_t stripe_rows(const Index& w) { return smaller(stripe_blocks(w), row_blocks(w)) * w.row_block; }

// sums[row] += sum over tokens of tile[row].
SW_INLINE void add_rows(const float* tile, int64_t rows, int64_t size, float* sums) {
    for (int64_t r = 0; r < rows; ++r) {
        Lanes total = zero();
        for (int64_t t = 0; t < size; t += W) total += load(tile + r * size + t);
        sums[r] += sum(total);
    }
}

// The part of a tile that the next cell reads, brought into L2 a few lines a row while this one is worked through: columns are
// read in no order that the processor could foresee.
struct Next {
    const float* line;
    int64_t lines;

    Next(const float* part, int64_t floats, int64_t rows) : line(part), lines((floats / 16 + rows - 1) / rows) {}
    SW_INLINE void row() {
        for (int64_t i = 0; i < lines; ++i, line += 16) __builtin_prefetch(line, 0, 2);
    }
};

}  // namespace
