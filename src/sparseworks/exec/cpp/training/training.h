// Products of sparse training. Activations lie in tiles of adjacent tokens, feature-major: [tile][feature][tokens of the tile], so
// that lanes are tokens. Kept values lie in the order in which the forward product reads them; their gradients in the same.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// A support cut into row blocks and K-blocks; a cell is one K-block of one row block, a segment one row's part of a cell. Entries
// are ordered by row block, K-block, then rows by falling count, so that trip counts are predictable.
struct Index {
    const uint8_t* columns;  // of each entry, within its K-block
    const uint8_t* count;   // of each segment
    const uint8_t* row_of;   // of each segment, within its row block
    const int32_t* first;    // first entry of each cell, and the total
    int64_t rows, width, row_block, k_block;
};

// A matrix (tokens, width), or maps (tokens / positions, width, positions), and its tiles.
struct Tiles {
    float* matrix;
    float* tiles;
    int64_t tokens, width, positions;  // positions: 0 for a matrix
    int threads;
};

// y = x W^T + b, from tiles into a matrix or maps.
struct Spmm {
    const float* x;
    const float* values;
    const float* bias;  // may be null
    float* y;
    Index w;
    int64_t tokens, positions;
    int threads;
};

// gradient[e] = sum over tokens of dy[row of e] x[column of e], from tiles.
struct Sddmm {
    const float *dy, *x;
    float* gradient;
    Index w;
    int64_t tokens;
    int threads;
};

// to[i] = from[order[i]]: the values in the order of the transpose.
struct Reorder {
    const float* from;
    const int32_t* order;
    float* to;
    int64_t entries;
    int threads;
};

// LayerNorm of the input of a layer; without a weight there is none.
struct Norm {
    const float *weight, *bias;
    float eps;
};

// y = W norm(x) + b + add. `kept`: the tiles of x, normalised but not stretched, and `scale` its factors, for the gradient.
struct Layer {
    const float *x, *add;  // add may be null
    float *y, *kept, *scale;  // kept may be null
    Index w;
    const float *values, *bias;  // bias may be null
    Norm norm;
    int64_t tokens;
    int threads;
};

// Gradients of the same. `values` are those of the transposed index, `add` is added to dx (which may be null); every thread adds
// up gradients of its own: [thread][entries, outputs, and with a norm its weight and bias].
struct LayerGradient {
    const float *dy, *add, *kept, *scale;
    float *dx, *gradients;
    Index w, transposed;
    const float* values;
    Norm norm;
    int64_t tokens;
    bool wants_values, wants_bias;
    int threads;
};

// y = down act(up norm(x) + b) + b + add, a tile of tokens from the first product to the last. `kept` and `scale` as above.
struct Mlp {
    const float *x, *add;
    float *y, *kept, *scale;
    Norm norm;
    Index up, down;
    const float *up_values, *up_bias, *down_values, *down_bias;  // biases may be null
    int64_t tokens;
    int activation;
    int threads;
};

// Gradients of the same. `up_t` and `down_t` are the transposed indices with their values; every thread adds up gradients of its
// own: [thread][up entries, up outputs, down entries, down outputs, and with a norm its weight and bias].
struct MlpGradient {
    const float *dy, *add, *kept, *scale;
    float* dx;  // may be null
    float* gradients;
    Norm norm;
    Index up, down, up_t, down_t;
    const float *up_values, *up_bias, *up_t_values, *down_t_values;
    int64_t tokens;
    int activation;
    int threads;
};

SW_KERNEL(layer, Layer)
SW_KERNEL(layer_gradient, LayerGradient)
SW_KERNEL(mlp, Mlp)
SW_KERNEL(mlp_gradient, MlpGradient)
SW_KERNEL(reorder, Reorder)
SW_KERNEL(to_tiles, Tiles)
SW_KERNEL(spmm, Spmm)
SW_KERNEL(sddmm, Sddmm)

// A support in row order: the columns of row n are columns[ptr[n] .. ptr[n + 1]), ascending.
struct Rows {
    const int32_t *ptr, *columns;
    int64_t rows, width;
};

// The transpose in row order; its entry e is entry order[e] of `a`.
void transpose_order(const Rows& a, int32_t* ptr, int32_t* columns, int32_t* order);
// Fills the buffers of an index with blocks as in `shape`; its entry e is entry order[e] of `a`.
void cut_segments(const Rows& a, const Index& shape, uint8_t* columns, uint8_t* count, uint8_t* row_of, int32_t* first,
                  int32_t* order);
// The support of an index in row order; its entry e is entry order[e] of the index.
void uncut_segments(const Index& w, int32_t* ptr, int32_t* columns, int32_t* order);
// Where each entry of `b` is in `a`, or -1.
void find_entries(const Rows& a, const Rows& b, int32_t* found);
// Drop-and-grow: the index, its transpose and the order between them, without entries whose `kept` is 0 and with the positions
// `grown` (row * width + column); `source`: which entry each new one was, or -1.
struct Exchange {
    Index forward, backward;
    const int32_t* order;
    int64_t entries;
    const uint8_t* kept;
    const int64_t* grown;
    int64_t growing;
    Index new_forward, new_backward;  // written to
    int32_t *new_order, *source;
    int64_t new_entries;
};
// False where something grows outside, twice, or on what is kept; then what was written is of no use.
bool exchange_entries(const Exchange& a);
// to[i] = from[source[i]], or 0 where source is -1; `from` is not empty.
void move_values(const float* from, const int32_t* source, float* to, int64_t n);
// result[i] = inverse[middle[last[i]]] with inverse[first[e]] = e; all permutations of n.
void relate_orders(const int32_t* first, const int32_t* middle, const int32_t* last, int64_t n, int32_t* result);
// result[i] = before[found[order[i]]], or -1 where found is.
void trace_entries(const int32_t* before, const int32_t* found, const int32_t* order, int64_t n, int32_t* result);

}  // namespace sparseworks
