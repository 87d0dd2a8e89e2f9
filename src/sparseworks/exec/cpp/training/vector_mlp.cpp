// Two sparse layers with an activation between them: a tile of tokens stays in L2 from the first product to the last, so that the
// wide layer in the middle is never written to memory; the gradient computes it again, which costs less than reading it.
#include "../activations.h"
#include "sddmm.h"
#include "spmm.h"

namespace sparseworks::SW_ISA {
namespace {

// Floats of the tile of a tile's tokens.
SW_INLINE int64_t tile_size(int64_t tokens) { return vectors_for(tokens) * W; }

template <class F>
SW_INLINE void over(int64_t floats, const F& f) {
    for (int64_t i = 0; i < floats; i += W) f(i);
}

// sums[row] += sum over tokens of tile[row].
SW_INLINE void add_rows(const float* tile, int64_t rows, int64_t size, int64_t tokens, float* sums) {
    for (int64_t r = 0; r < rows; ++r) {
        Lanes total = zero();
        for (int64_t t = 0; t < tokens; t += W) total += load_first(tile + r * size + t, tokens - t);
        sums[r] += sum(total);
    }
}

template <int V>
void forward(const Mlp& a, int64_t token, float* scratch) {
    constexpr int64_t T = V * W;
    const int64_t tokens = smaller(a.tokens - token, T), in = a.up.width, wide = a.up.rows, out = a.down.rows;
    float *hidden = scratch, *y = hidden + wide * T;
    float* x = a.kept ? a.kept + token * in : y + out * T;
    pack(a.x + token * in, in, tokens, T, 0, in, x);
    multiply<V>(a.up, a.up_values, a.up_bias, x, 0, row_blocks(a.up), hidden);
    with_activation(static_cast<Activation>(a.activation), [&](auto f) {
        over(wide * T, [&](int64_t i) { store(hidden + i, activate<f()>(load(hidden + i))); });
    });
    multiply<V>(a.down, a.down_values, a.down_bias, hidden, 0, row_blocks(a.down), y);
    unpack(y, out, tokens, T, a.y + token * out, out);
}

template <int V>
void gradient(const Index& w, const float* dy, const float* x, float* to) {
    const int64_t k_blocks = (w.width + w.k_block - 1) / w.k_block;
    for (int64_t b = 0; b < row_blocks(w); ++b) {
        for (int64_t kb = 0; kb < k_blocks; ++kb) sample<V>(w, dy, x, true, b, kb, to);
    }
}

template <int V>
void backward(const MlpGradient& a, int64_t token, float* gradients, float* scratch) {
    constexpr int64_t T = V * W;
    const int64_t tokens = smaller(a.tokens - token, T), in = a.up.width, wide = a.up.rows, out = a.down.rows;
    const int64_t up_entries = a.up.first[row_blocks(a.up) * ((in + a.up.k_block - 1) / a.up.k_block)];
    const int64_t down_entries = a.down.first[row_blocks(a.down) * ((wide + a.down.k_block - 1) / a.down.k_block)];
    float *up_bias = gradients + up_entries, *down = up_bias + wide, *down_bias = down + down_entries;
    const float* x = a.kept + token * in;
    float *hidden = scratch, *dhidden = hidden + wide * T, *dy = dhidden + wide * T, *dx = dy + out * T;

    pack(a.dy + token * out, out, tokens, T, 0, out, dy);
    multiply<V>(a.down_t, a.down_t_values, nullptr, dy, 0, row_blocks(a.down_t), dhidden);
    multiply<V>(a.up, a.up_values, a.up_bias, x, 0, row_blocks(a.up), hidden);
    with_activation(static_cast<Activation>(a.activation), [&](auto f) {
        over(wide * T, [&](int64_t i) {
            const Lanes u = load(hidden + i);
            store(hidden + i, activate<f()>(u));
            store(dhidden + i, load(dhidden + i) * slope<f()>(u));
        });
    });
    gradient<V>(a.down, dy, hidden, down);
    add_rows(dy, out, T, tokens, down_bias);
    gradient<V>(a.up, dhidden, x, gradients);
    add_rows(dhidden, wide, T, tokens, up_bias);
    if (!a.dx) return;
    multiply<V>(a.up_t, a.up_t_values, nullptr, dhidden, 0, row_blocks(a.up_t), dx);
    unpack(dx, in, tokens, T, a.dx + token * in, in);
}

}  // namespace

void mlp(const Mlp& a) {
    const int64_t tiles = (a.tokens + kTile - 1) / kTile;
    split(tiles, a.threads, a.tokens * a.up.rows * 16, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* memory = scratch.floats((a.up.rows + a.down.rows + a.up.width) * kTile);
        for (int64_t t = begin; t < end; ++t) {
            with_vectors(a.tokens - t * kTile, [&](auto v) { forward<v>(a, t * kTile, memory); });
        }
    });
}

void mlp_gradient(const MlpGradient& a) {
    const int64_t tiles = (a.tokens + kTile - 1) / kTile, parts = a.threads;
    const int64_t up_cells = row_blocks(a.up) * ((a.up.width + a.up.k_block - 1) / a.up.k_block);
    const int64_t down_cells = row_blocks(a.down) * ((a.down.width + a.down.k_block - 1) / a.down.k_block);
    const int64_t own = a.up.first[up_cells] + a.up.rows + a.down.first[down_cells] + a.down.rows;
    split(parts, a.threads, a.tokens * a.up.rows * 16, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* memory = scratch.floats((2 * a.up.rows + a.down.rows + a.up.width) * kTile);
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t t = tiles * p / parts; t < tiles * (p + 1) / parts; ++t) {
                with_vectors(a.tokens - t * kTile, [&](auto v) { backward<v>(a, t * kTile, a.gradients + p * own, memory); });
            }
        }
    });
}

}  // namespace sparseworks::SW_ISA
