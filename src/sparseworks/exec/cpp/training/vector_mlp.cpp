// Two sparse layers with an activation between them: a tile of tokens stays in L2 from the first product to the last, so that the
// wide layer in the middle is never written to memory; the gradient computes it again, which costs less than reading it.
#include "../activations.h"
#include "norm.h"
#include "sddmm.h"
#include "spmm.h"

namespace sparseworks::SW_ISA {
namespace {

// body(first row, rows) for row blocks, whose sums are still in the nearest caches.
template <class Body>
SW_INLINE void in_blocks(const Index& w, const Body& body) {
    for (int64_t b = 0; b < row_blocks(w); ++b) {
        body(b, b * w.row_block, smaller(w.rows - b * w.row_block, w.row_block));
    }
}

template <int V>
void forward(const Mlp& a, int64_t token, float* scratch) {
    constexpr int64_t T = V * W;
    const int64_t tokens = smaller(a.tokens - token, T), in = a.up.width, wide = a.up.rows, out = a.down.rows;
    float *hidden = scratch, *y = hidden + wide * T;
    float *normed = y + out * T, *x = a.kept ? a.kept + token * in : normed + in * T;
    pack(a.x + token * in, in, tokens, T, 0, in, x);
    if (a.norm.weight) {
        normalise<V>(x, in, a.norm.eps, a.kept ? a.scale + token : x + in * T);
        stretch<V>(x, in, a.norm.weight, a.norm.bias, normed);
        x = normed;
    }
    with_activation(static_cast<Activation>(a.activation), [&](auto f) {
        in_blocks(a.up, [&](int64_t block, int64_t row, int64_t rows) {
            float* h = hidden + row * T;
            multiply<V>(a.up, a.up_values, a.up_bias, x, block, block + 1, h);
            for (int64_t i = 0; i < rows * T; i += W) store(h + i, activate<f()>(load(h + i)));
        });
    });
    multiply<V>(a.down, a.down_values, a.down_bias, hidden, 0, row_blocks(a.down), y);
    unpack(y, out, tokens, T, a.y + token * out, out, a.add ? a.add + token * out : nullptr);
}

template <int V>
void backward(const MlpGradient& a, int64_t token, float* gradients, float* scratch) {
    constexpr int64_t T = V * W;
    const int64_t tokens = smaller(a.tokens - token, T), in = a.up.width, wide = a.up.rows, out = a.down.rows;
    float *up_bias = gradients + entry_count(a.up), *down = up_bias + wide, *down_bias = down + entry_count(a.down);
    float *dweight = down_bias + out, *dshift = dweight + in;
    const float *kept = a.kept + token * in, *x = kept;
    float *hidden = scratch, *dhidden = hidden + wide * T, *dy = dhidden + wide * T, *dx = dy + out * T, *normed = dx + in * T;

    pack(a.dy + token * out, out, tokens, T, 0, out, dy);
    if (a.norm.weight) {
        stretch<V>(kept, in, a.norm.weight, a.norm.bias, normed);
        x = normed;
    }
    with_activation(static_cast<Activation>(a.activation), [&](auto f) {
        in_blocks(a.up, [&](int64_t block, int64_t row, int64_t rows) {  // which are those of down_t: both have as many rows
            float *h = hidden + row * T, *dh = dhidden + row * T;
            multiply<V>(a.down_t, a.down_t_values, nullptr, dy, block, block + 1, dh);
            multiply<V>(a.up, a.up_values, a.up_bias, x, block, block + 1, h);
            for (int64_t i = 0; i < rows * T; i += W) {
                const Sloped y = activate_with_slope<f()>(load(h + i));
                store(h + i, y.value);
                store(dh + i, load(dh + i) * y.slope);
            }
        });
    });
    sample_all<V>(a.down, dy, hidden, down);
    add_rows(dy, out, T, down_bias);
    sample_all<V>(a.up, dhidden, x, gradients);
    add_rows(dhidden, wide, T, up_bias);
    if (!a.dx) return;
    multiply<V>(a.up_t, a.up_t_values, nullptr, dhidden, 0, row_blocks(a.up_t), dx);
    if (a.norm.weight) norm_gradient<V>(dx, kept, in, a.norm.weight, a.scale + token, dweight, dshift);
    unpack(dx, in, tokens, T, a.dx + token * in, in, a.add ? a.add + token * in : nullptr);
}

}  // namespace

void mlp(const Mlp& a) {
    const int64_t tiles = (a.tokens + kTile - 1) / kTile;
    split(tiles, a.threads, a.tokens * a.up.rows * 16, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* memory = scratch.floats((a.up.rows + a.down.rows + 2 * a.up.width + 1) * kTile);
        for (int64_t t = begin; t < end; ++t) {
            with_vectors(a.tokens - t * kTile, [&](auto v) { forward<v>(a, t * kTile, memory); });
        }
    });
}

void mlp_gradient(const MlpGradient& a) {
    const int64_t tiles = (a.tokens + kTile - 1) / kTile, parts = a.threads;
    const int64_t own = entry_count(a.up) + a.up.rows + entry_count(a.down) + a.down.rows + (a.norm.weight ? 2 * a.up.width : 0);
    split(parts, a.threads, a.tokens * a.up.rows * 16, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* memory = scratch.floats((2 * a.up.rows + a.down.rows + 2 * a.up.width) * kTile);
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t t = tiles * p / parts; t < tiles * (p + 1) / parts; ++t) {
                with_vectors(a.tokens - t * kTile, [&](auto v) { backward<v>(a, t * kTile, a.gradients + p * own, memory); });
            }
        }
    });
}

}  // namespace sparseworks::SW_ISA
