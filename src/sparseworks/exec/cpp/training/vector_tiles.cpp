// Activations into tiles: transposes of a matrix whose rows are tokens, copies of maps whose positions are contiguous already.
#include "tiles.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kAhead = 64;    // entries fetched ahead
constexpr int64_t kColumns = 64;  // columns that one task packs: whole lines of every token

// Tokens of a tile may belong to several images.
void from_maps(const Tiles& a, int64_t token, int64_t tokens, int64_t size, int64_t k, int64_t end, float* tile) {
    for (int64_t c = k; c < end; ++c) {
        float* to = tile + c * size;
        for (int64_t t = 0; t < tokens;) {
            const int64_t image = (token + t) / a.positions, at = (token + t) % a.positions;
            const int64_t n = smaller(tokens - t, a.positions - at);
            std::memcpy(to + t, a.matrix + (image * a.width + c) * a.positions + at, n * sizeof(float));
            t += n;
        }
        for (int64_t t = tokens; t < size; ++t) to[t] = 0.0f;
    }
}

}  // namespace

void to_tiles(const Tiles& a) {
    const int64_t tiles = (a.tokens + kTile - 1) / kTile, chunks = (a.width + kColumns - 1) / kColumns;
    split(tiles * chunks, a.threads, a.tokens * a.width, [&](int64_t begin, int64_t last) {
        for (int64_t i = begin; i < last; ++i) {
            const int64_t token = i / chunks * kTile, tokens = smaller(a.tokens - token, kTile);
            const int64_t k = i % chunks * kColumns, end = smaller(a.width, k + kColumns), size = vectors_for(tokens) * W;
            float* tile = a.tiles + token * a.width;
            if (a.positions) from_maps(a, token, tokens, size, k, end, tile);
            else pack(a.matrix + token * a.width, a.width, tokens, size, k, end, tile);
        }
    });
}

void reorder(const Reorder& a) {
    split(a.entries, a.threads, a.entries * 4, [&](int64_t begin, int64_t end) {
        int64_t i = begin;
        for (; i + kAhead + 4 <= end; i += 4) {
            each<4>([&](auto u) {
                __builtin_prefetch(a.from + a.order[i + kAhead + u]);
                a.to[i + u] = a.from[a.order[i + u]];
            });
        }
        for (; i < end; ++i) a.to[i] = a.from[a.order[i]];
    });
}

}  // namespace sparseworks::SW_ISA
