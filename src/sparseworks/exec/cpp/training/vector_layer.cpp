// A sparse layer with the norm before it and the residual after it, a tile of tokens at a time: the tile stays in L2 from the first
// pass to the last, where a pass over all tokens would read and write memory.
#include "norm.h"
#include "sddmm.h"
#include "spmm.h"

namespace sparseworks::SW_ISA {
namespace {

// A product of a tile, a stripe of outputs after the other, into rows of a matrix.
template <int V>
void put_product(const Index& w, const float* values, const float* bias, const float* x, int64_t tokens, float* sums, float* to,
                 const float* add) {
    const int64_t blocks = row_blocks(w), tall = stripe_blocks(w);
    for (int64_t b = 0; b < blocks; b += tall) {
        const int64_t last = smaller(b + tall, blocks), first = b * w.row_block, height = smaller(w.rows, last * w.row_block) - first;
        multiply<V>(w, values, bias, x, b, last, sums);
        unpack(sums, height, tokens, V * W, to + first, w.rows, add ? add + first : nullptr);
    }
}

template <int V>
void forward(const Layer& a, int64_t token, float* scratch) {
    constexpr int64_t T = V * W;
    const int64_t tokens = smaller(a.tokens - token, T), in = a.w.width, out = a.w.rows;
    float *sums = scratch, *own = sums + stripe_rows(a.w) * T, *x = a.kept ? a.kept + token * in : own;
    pack(a.x + token * in, in, tokens, T, 0, in, x);
    if (a.norm.weight) {
        float* normed = own + in * T;
        normalise<V>(x, in, a.norm.eps, a.kept ? a.scale + token : normed + in * T);
        stretch<V>(x, in, a.norm.weight, a.norm.bias, normed);
        x = normed;
    }
    put_product<V>(a.w, a.values, a.bias, x, tokens, sums, a.y + token * out, a.add ? a.add + token * out : nullptr);
}

template <int V>
void backward(const LayerGradient& a, int64_t token, float* gradients, float* scratch) {
    constexpr int64_t T = V * W;
    const int64_t tokens = smaller(a.tokens - token, T), in = a.w.width, out = a.w.rows;
    float *dbias = gradients + entry_count(a.w), *dweight = dbias + out, *dshift = dweight + in;
    float *dy = scratch, *dx = dy + out * T, *normed = dx + in * T;
    const float *kept = a.kept + token * in, *x = kept;
    pack(a.dy + token * out, out, tokens, T, 0, out, dy);
    if (a.norm.weight) {
        stretch<V>(kept, in, a.norm.weight, a.norm.bias, normed);
        x = normed;
    }
    if (a.wants_values) sample_all<V>(a.w, dy, x, gradients);
    if (a.wants_bias) add_rows(dy, out, T, dbias);
    if (!a.dx) return;
    const float* add = a.add ? a.add + token * in : nullptr;
    if (!a.norm.weight) return put_product<V>(a.transposed, a.values, nullptr, dy, tokens, dx, a.dx + token * in, add);
    multiply<V>(a.transposed, a.values, nullptr, dy, 0, row_blocks(a.transposed), dx);
    norm_gradient<V>(dx, kept, in, a.norm.weight, a.scale + token, dweight, dshift);
    unpack(dx, in, tokens, T, a.dx + token * in, in, add);
}

}  // namespace

void layer(const Layer& a) {
    const int64_t tiles = (a.tokens + kTile - 1) / kTile;
    split(tiles, a.threads, a.tokens * a.w.rows * 8, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* memory = scratch.floats((stripe_rows(a.w) + 2 * a.w.width + 1) * kTile);
        for (int64_t t = begin; t < end; ++t) {
            with_vectors(a.tokens - t * kTile, [&](auto v) { forward<v>(a, t * kTile, memory); });
        }
    });
}

void layer_gradient(const LayerGradient& a) {
    const int64_t tiles = (a.tokens + kTile - 1) / kTile, parts = a.threads;
    const int64_t own = entry_count(a.w) + a.w.rows + (a.norm.weight ? 2 * a.w.width : 0);
    split(parts, a.threads, a.tokens * a.w.rows * 16, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* memory = scratch.floats((a.w.rows + a.w.width + (a.norm.weight ? a.w.width : stripe_rows(a.transposed))) * kTile);
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t t = tiles * p / parts; t < tiles * (p + 1) / parts; ++t) {
                with_vectors(a.tokens - t * kTile, [&](auto v) { backward<v>(a, t * kTile, a.gradients + p * own, memory); });
            }
        }
    });
}

}  // namespace sparseworks::SW_ISA
