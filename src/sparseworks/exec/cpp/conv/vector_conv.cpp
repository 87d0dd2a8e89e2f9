// Sparse convolution as shifted rows: lanes are output positions, laid out flat over the padded map, so that a kept weight is one
// broadcast and contiguous multiply-adds at an offset (Elsen et al. 2019, arXiv 1911.09723, carried over to larger kernels).
// Channels come in blocks whose part of a tile stays in L1; sums of a tile wait in L2 between blocks.
#include "../simd.h"
#include "conv.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int kVectors = 12;       // most vectors in a tile: as many sums as registers hold
constexpr int64_t kAhead = 16;     // entries fetched ahead

SW_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SW_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Independent sums per vector: eight chains hide the latency of a multiply-add.
template <int V>
constexpr int kChains = V >= 6 ? 1 : V >= 3 ? 2 : V == 2 ? 4 : 8;

template <int V, int N, int C>
SW_INLINE void entries(const float* x, const int32_t* offsets, const float* values, Lanes (&sums)[C][V]) {
    each<N>([&](auto u) {
        const float* lane = x + offsets[u];
        const Lanes w = all(values[u]);
        each<V>([&](auto v) { sums[u % C][v] = multiply_add(w, load(lane + W * v), sums[u % C][v]); });
    });
}

template <int V>
SW_INLINE void segment(const float* x, const int32_t* offsets, const float* values, int64_t n, bool first, float start, float* to) {
    constexpr int C = kChains<V>, N = C > 4 ? C : 4;
    Lanes sums[C][V];
    each<C>([&](auto c) { each<V>([&](auto v) { sums[c][v] = zero(); }); });
    int64_t i = 0;
    for (; i + N <= n; i += N) entries<V, N>(x, offsets + i, values + i, sums);
    for (; i < n; ++i) entries<V, 1>(x, offsets + i, values + i, sums);
    each<V>([&](auto v) {
        each<C - 1>([&](auto c) { sums[0][v] += sums[c + 1][v]; });
        store(to + W * v, sums[0][v] + (first ? all(start) : load(to + W * v)));
    });
}

// Outputs [begin, end) at the positions from `x` on, into `sums`, [output][position].
template <int V>
void tile(const Conv& a, const float* x, int64_t begin, int64_t end, float* sums) {
    for (int64_t b = 0; b < a.blocks; ++b) {
        const int32_t* from = a.starts + b * a.out;
        const int32_t* to = from + a.out;
        for (int64_t o = begin; o < end; ++o) {
            const int64_t at = from[o], next = o + 1 < end ? from[o + 1] : at;
            __builtin_prefetch(a.offsets + next);
            __builtin_prefetch(a.values + next);
            __builtin_prefetch(a.offsets + next + kAhead);
            __builtin_prefetch(a.values + next + kAhead);
            segment<V>(x, a.offsets + at, a.values + at, to[o] - at, b == 0, a.bias ? a.bias[o] : 0.0f, sums + (o - begin) * V * W);
        }
    }
}

template <class Body, int... V>
SW_INLINE void with_vectors(int64_t n, const Body& body, std::integer_sequence<int, V...>) {
    ((n == V + 1 ? body(std::integral_constant<int, V + 1>{}) : void()), ...);
}

// One phase of one channel: rows of the map at their pitch, zeros around them.
void fill(const Layout& l, const float* x, int64_t phase_y, int64_t phase_x, float* plane) {
    const int64_t rows = (l.plane + l.pitch - 1) / l.pitch, offset = phase_x - l.left;
    const int64_t first = smaller(l.pitch, larger(0, (-offset + l.stride_x - 1) / l.stride_x));
    for (int64_t r = 0; r < rows; ++r) {
        float* to = plane + r * l.pitch;
        const int64_t width = smaller(l.pitch, l.plane - r * l.pitch), at = r * l.stride_y + phase_y - l.top;
        const int64_t start = smaller(first, width);
        const int64_t fits = l.wide > offset ? (l.wide - offset + l.stride_x - 1) / l.stride_x : 0;
        const int64_t stop = at < 0 || at >= l.high ? start : larger(start, smaller(width, fits));
        const float* from = x + at * l.wide + offset;
        std::memset(to, 0, start * sizeof(float));
        if (l.stride_x == 1) {
            if (stop > start) std::memcpy(to + start, from + start, (stop - start) * sizeof(float));
        } else {
            for (int64_t q = start; q < stop; ++q) to[q] = from[q * l.stride_x];
        }
        std::memset(to + stop, 0, (width - stop) * sizeof(float));
    }
}

// What counts of positions [begin, end), of which `sums` holds those from `first` on.
SW_INLINE void put(const Conv& a, const float* sums, int64_t first, int64_t begin, int64_t end, float* y) {
    if (a.layout.pitch == a.out_wide) {
        std::memcpy(y + begin, sums + begin - first, (end - begin) * sizeof(float));
        return;
    }
    for (int64_t p = begin; p < end;) {
        const int64_t row = p / a.layout.pitch, column = p - row * a.layout.pitch;
        const int64_t n = smaller(end - p, a.out_wide - column);
        for (int64_t i = 0; i < n; ++i) y[row * a.out_wide + column + i] = sums[p - first + i];
        p += n > 0 ? a.layout.pitch - column < end - p ? a.layout.pitch - column : end - p : a.layout.pitch - column;
    }
}

struct Tiles {
    int64_t positions, count, vectors;
};

Tiles tiles_of(const Conv& a) {
    const int64_t positions = (a.out_high - 1) * a.layout.pitch + a.out_wide, vectors = (positions + W - 1) / W;
    const int64_t count = (vectors + kVectors - 1) / kVectors;
    return {positions, count, (vectors + count - 1) / count};
}

// The map as the taps read it; one that already is so is not copied, unless a vector would reach past its end.
const float* padded(const Conv& a, const Tiles& tiles, const float* x, Scratch& scratch) {
    const Layout& l = a.layout;
    const int64_t phases = l.phases_y * l.phases_x, planes = l.channels * phases, slack = tiles.vectors * W;
    const bool plain = l.pitch == l.wide && l.plane == l.wide * l.high && phases * l.stride_y * l.stride_x == 1 && !l.top && !l.left;
    if (plain && tiles.positions >= slack) return x;
    float* map = scratch.floats(planes * l.plane + slack);
    std::memset(map + planes * l.plane, 0, slack * sizeof(float));
    split(planes, a.threads, planes * l.plane, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t phase = i % phases;
            fill(l, x + i / phases * l.high * l.wide, phase / l.phases_x, phase % l.phases_x, map + i * l.plane);
        }
    });
    return map;
}

void image(const Conv& a, const Tiles& tiles, const float* x, float* y) {
    static thread_local Scratch scratch;
    const float* map = padded(a, tiles, x, scratch);
    const int64_t groups = smaller(a.out, a.threads), width = tiles.vectors * W;
    split(tiles.count * groups, a.threads, a.out * tiles.positions * 8, [&](int64_t begin, int64_t end) {
        static thread_local Scratch memory;
        float* sums = memory.floats((a.out / groups + 1) * width);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i % groups, from = a.out * group / groups, to = a.out * (group + 1) / groups;
            // The last tile overlaps the one before it instead of being cut.
            const int64_t p = i / groups * width, first = larger(0, smaller(p, tiles.positions - width));
            with_vectors(tiles.vectors, [&](auto v) { tile<v>(a, map + first, from, to, sums); },
                         std::make_integer_sequence<int, kVectors>{});
            for (int64_t o = from; o < to; ++o) {
                put(a, sums + (o - from) * width, first, p, smaller(tiles.positions, p + width), y + o * a.out_high * a.out_wide);
            }
        }
    });
}

}  // namespace

void conv(const Conv& a) {
    const Tiles tiles = tiles_of(a);
    const int64_t in = a.layout.channels * a.layout.high * a.layout.wide, out = a.out * a.out_high * a.out_wide;
    // Whole images to each thread where there are enough of them; inside, nothing is split again.
    split(a.images, a.images >= a.threads ? a.threads : 1, a.images * out * 8, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) image(a, tiles, a.x + i * in, a.y + i * out);
    });
}

}  // namespace sparseworks::SW_ISA
