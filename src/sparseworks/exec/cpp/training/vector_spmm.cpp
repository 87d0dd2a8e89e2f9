// A sparse matrix times tiles of activations, into a matrix or maps.
#include "spmm.h"

namespace sparseworks::SW_ISA {
namespace {

// Sums of rows from `first` on, of a tile's tokens, to where they belong in y.
template <int V>
void put(const Spmm& a, const float* sums, int64_t first, int64_t height, int64_t token) {
    constexpr int64_t T = V * W;
    const int64_t tokens = smaller(a.tokens - token, T);
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
    unpack(sums, height, tokens, T, a.y + token * a.w.rows + first, a.w.rows);
}

}  // namespace

void spmm(const Spmm& a) {
    const Index& w = a.w;
    const int64_t blocks = row_blocks(w), tiles = (a.tokens + kTile - 1) / kTile;
    const int64_t tall = stripe_blocks(w);
    split(tiles * blocks, a.threads, a.tokens * w.rows * 8, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* sums = scratch.floats(tall * w.row_block * kTile);
        while (begin < end) {
            const int64_t token = begin / blocks * kTile, from = begin % blocks, to = smaller(from + end - begin, blocks);
            with_vectors(a.tokens - token, [&](auto v) {
                for (int64_t b = from; b < to; b += tall) {
                    const int64_t last = smaller(b + tall, to), first = b * w.row_block;
                    multiply<v>(w, a.values, a.bias, a.x + token * w.width, b, last, sums);
                    put<v>(a, sums, first, smaller(w.rows, last * w.row_block) - first, token);
                }
            });
            begin += to - from;
        }
    });
}

}  // namespace sparseworks::SW_ISA
