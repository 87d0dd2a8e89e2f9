// Many rows of x: lanes are tokens. Per kept entry one broadcast and contiguous multiply-adds over a feature-major tile
// [K][T] of x, of which a K-block stays in L1; the sums of a stripe of outputs stay in L2. `Arithmetic` says what an entry
// is: its stored type, the vectors, the multiply-add, how a tile is packed and sums become outputs.
//
// A tile has as many tokens on every processor, for the format has cut K-blocks for that many; how many vectors these are differs.
#pragma once
#include "../simd.h"
#include "linear.h"

namespace {

using sparseworks::Product;

constexpr int kPadded = 2;          // segments hold a multiple of this
constexpr int kUnrolled = 4;
constexpr int64_t kSums = 1 << 15;  // kept at once, in L2: 128 KiB
constexpr int64_t kAhead = 256;     // entries fetched ahead
constexpr int64_t kSumsAhead = 6;   // rows whose sums are fetched ahead

// Independent sums per vector: eight chains hide the latency of a multiply-add.
template <int V>
constexpr int kChains = V >= 8 ? 1 : V == 4 ? 2 : 4;

// A weight cut into K-blocks and row blocks: segment s = one row's part of one K-block.
struct Segments : Product {
    const int32_t* ptr;
    const uint8_t* columns;
    const void* values;
    const uint8_t* row_of;
    int64_t width, k_block, row_block;  // width: cells of a token in the tile
};

constexpr int log2_of(int64_t n) { return n == 1 ? 0 : 1 + log2_of(n / 2); }

// Where column u of N lies in a tile of T tokens, in bytes: all N are read at once, since two reads a cycle are the limit.
template <int T, int N>
struct Offsets {
    static constexpr int kShift = 2 + log2_of(T);
    uint32_t columns;

    SW_INLINE explicit Offsets(const uint8_t* from) {
        uint8_t four[4] = {};
        std::memcpy(four, from, N);
        std::memcpy(&columns, four, 4);
    }
    template <int u>
    SW_INLINE int64_t at() const {
        constexpr int right = 8 * u - kShift;
        return (right >= 0 ? columns >> (right & 31) : columns << (-right & 31)) & (255u << kShift);
    }
};

// N entries, each added to its own chain as far as there are enough.
template <int V, int N, class A, int C>
SW_INLINE void entries(const typename A::Cell* x, const uint8_t* columns, const typename A::Stored* values,
                       typename A::Vector (&sum)[C][V]) {
    const Offsets<V * W, N> offsets(columns);
    typename A::Vector w[N];
    broadcast(values, w);
    each<N>([&](auto u) {
        const auto* lane = reinterpret_cast<const typename A::Cell*>(reinterpret_cast<const char*>(x) + offsets.template at<u>());
        each<V>([&](auto v) { sum[u % C][v] = A::multiply_add(w[u], load(lane + W * v), sum[u % C][v]); });
    });
}

SW_INLINE Lanes plus(Lanes a, Lanes b) { return a + b; }
// Whole numbers wrap: `limit` keeps sums small, but a damaged file can hold any values.
SW_INLINE Ints plus(Ints a, Ints b) {
    using Unsigned = uint32_t __attribute__((vector_size(4 * W)));
    return reinterpret_cast<Ints>(reinterpret_cast<Unsigned>(a) + reinterpret_cast<Unsigned>(b));
}

template <int V, class A>
SW_INLINE void segment(const typename A::Cell* x, const uint8_t* columns, const typename A::Stored* values, int64_t n,
                       const typename A::Cell* from, typename A::Vector start, typename A::Cell* to) {
    constexpr int C = kChains<V>, N = kUnrolled;
    typename A::Vector sum[C][V];
    each<V>([&](auto v) { sum[0][v] = start; });
    each<C - 1>([&](auto c) { each<V>([&](auto v) { sum[c + 1][v] = typename A::Vector{}; }); });
    int64_t i = 0;
    for (; i + N <= n; i += N) entries<V, N, A>(x, columns + i, values + i, sum);
    if (i < n) entries<V, kPadded, A>(x, columns + i, values + i, sum);
    each<V>([&](auto v) {
        each<C - 1>([&](auto c) { sum[0][v] = plus(sum[0][v], sum[c + 1][v]); });
        store(to + W * v, from ? plus(sum[0][v], load(from + W * v)) : sum[0][v]);  // last: nothing waits for L2
    });
}

// Lines that will be touched soon, fetched a few at a time while the arithmetic runs: a rectangle, column of lines by column.
struct Fetch {
    const float* line = nullptr;
    int64_t stride = 0, rows = 0, lines = 0, row = 0;

    template <bool Write>
    SW_INLINE void four() {
        if (lines <= 0) return;
        each<4>([&](auto i) {
            const char* at = reinterpret_cast<const char*>(line + (row + i < rows ? i * stride : 0));
            if constexpr (Write) __builtin_prefetch(at, 1, 3);
            else __builtin_prefetch(at, 0, 2);
        });
        line += 4 * stride, row += 4;
        if (row >= rows) line += 16 - row * stride, row = 0, --lines;
    }
};

struct Rows {
    int64_t first, height;
};

// One row block times one K-block `x`.
template <int V, bool Write, class A>
void block(const Segments& a, int64_t k_blocks, int64_t kb, Rows b, const typename A::Cell* x, typename A::Cell* sums,
           Fetch& fetch) {
    constexpr int T = V * W;
    const auto* values = static_cast<const typename A::Stored*>(a.values);
    const int64_t s = b.first * k_blocks + kb * b.height;
    for (int64_t i = 0; i < b.height; ++i) {
        const int64_t e = a.ptr[s + i], n = a.ptr[s + i + 1] - e, row = a.row_of[s + i];
        typename A::Cell* to = sums + row * T;
        if constexpr (T >= 32) fetch.template four<Write>();
        const typename A::Cell* later = sums + a.row_of[s + (i + kSumsAhead < b.height ? i + kSumsAhead : i)] * T;
        each<(T + 15) / 16>([&](auto l) { __builtin_prefetch(later + 16 * l, 1, 3); });
        __builtin_prefetch(values + e + kAhead);
        __builtin_prefetch(a.columns + e + 2 * kAhead);
        if (kb == 0) segment<V, A>(x, a.columns + e, values + e, n, nullptr, A::start(a.bias, b.first + row), to);
        else segment<V, A>(x, a.columns + e, values + e, n, to, typename A::Vector{}, to);
    }
}

// Tokens [token, token + VW) of row blocks [from, to).
template <int V, class A>
void tokens_by_rows(const A& arithmetic, const Segments& a, int64_t token, int64_t from, int64_t to, typename A::Cell* x,
                    typename A::Cell* sums) {
    constexpr int T = V * W;
    const int64_t k_blocks = (a.width + a.k_block - 1) / a.k_block, tokens = a.rows - token < T ? a.rows - token : T;
    const int64_t step = kSums / T / a.row_block > 0 ? kSums / T / a.row_block : 1;
    const bool once = to - from <= step && A::kByBlock;  // then a K-block is packed, read and gone, in L1
    float scales[T];
    const auto at = [&](int64_t b) {
        const int64_t first = b * a.row_block;
        return Rows{first, a.out - first < a.row_block ? a.out - first : a.row_block};
    };
    for (int64_t stripe = from; stripe < to; stripe += step) {
        const int64_t end = stripe + step < to ? stripe + step : to;
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            typename A::Cell* from_x = x + (once ? 0 : kb * a.k_block * T);
            Fetch ahead;
            if (stripe == from) ahead = arithmetic.template pack<T>(a, kb, k_blocks, token, tokens, from_x, scales);
            for (int64_t b = stripe; b < end; ++b) {
                typename A::Cell* part = sums + (b - stripe) * a.row_block * T;
                if (kb + 1 == k_blocks) {
                    Fetch y{a.y + token * a.out + at(b).first, a.out, tokens, (at(b).height + 15) / 16};
                    block<V, true, A>(a, k_blocks, kb, at(b), from_x, part, y);
                    arithmetic.template unpack<T>(a, part, at(b).first, at(b).height, token, tokens, scales);
                } else {
                    block<V, false, A>(a, k_blocks, kb, at(b), from_x, part, ahead);
                }
            }
        }
    }
}

// `tokens_by_rows` of the fewest vectors that hold the tokens, at most V.
template <int V, class A>
auto narrowest(int64_t tokens) {
    if constexpr (V > 1) {
        if (tokens <= V / 2 * W) return narrowest<V / 2, A>(tokens);
    }
    return tokens_by_rows<V, A>;
}

template <class A>
void tiles(const A& arithmetic, const Segments& a) {
    const int64_t blocks = (a.out + a.row_block - 1) / a.row_block, count = (a.rows + A::kTile - 1) / A::kTile;
    const int64_t work = a.rows * a.ptr[a.out * ((a.width + a.k_block - 1) / a.k_block)];
    sparseworks::split(count * blocks, a.threads, work, [&](int64_t begin, int64_t end) {
        using Cell = typename A::Cell;
        static thread_local Scratch scratch;
        Cell* x = reinterpret_cast<Cell*>(scratch.floats((a.width + W + a.row_block) * A::kTile + kSums));
        Cell* sums = x + (a.width + W) * A::kTile;
        while (begin < end) {
            const int64_t tile = begin / blocks, from = begin % blocks, left = a.rows - tile * A::kTile;
            const int64_t to = from + end - begin < blocks ? from + end - begin : blocks;
            narrowest<A::kTile / W, A>(left)(arithmetic, a, tile * A::kTile, from, to, x, sums);
            begin += to - from;
        }
    });
}

// x (tokens, width) at `stride` -> feature-major tile [width][T]; missing tokens are zero. Along W rows of x: as many streams
// are fetched by the processor itself, lines of rows a multiple of 4 KiB apart are not.
template <int T>
void pack_tokens(const float* x, int64_t stride, int64_t width, int64_t tokens, float* tile) {
    for (int64_t t = 0; t < T; t += W) {
        for (int64_t k = 0; k < width; k += W) {
            transpose(x + t * stride + k, stride, tokens - t, width - k, tile + k * T + t, T, width - k, W);
        }
    }
}

// Feature-major [height][T] -> y (tokens, out) at stride `out`, a line of y at a time.
template <int T>
void unpack_tokens(const float* tile, int64_t height, int64_t tokens, float* y, int64_t out) {
    for (int64_t n = 0; n < height; n += 16) {
        for (int64_t t = 0; t < T && t < tokens; t += W) {
            for (int64_t r = n; r < n + 16 && r < height; r += W) {
                transpose(tile + r * T + t, T, height - r, W, y + t * out + r, out, tokens - t, height - r);
            }
        }
    }
}

}  // namespace
