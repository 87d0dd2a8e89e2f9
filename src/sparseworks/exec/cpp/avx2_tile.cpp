// Any support, many rows of x: lanes are tokens. Per kept weight one broadcast and contiguous multiply-adds over a
// feature-major tile [K][T] of x, of which a K-block stays in L1; the sums of a stripe of outputs stay in L2.
#include "avx2.h"

namespace sparseworks::avx2 {
namespace {

constexpr int kPadded = 2;         // segments hold a multiple of this
constexpr int64_t kTokens = 64;    // the largest tile
constexpr int64_t kStripe = 512;   // outputs whose sums are kept at once

// Independent sums per lane group: eight chains hide the latency of a multiply-add.
template <int V>
constexpr int kChains = V >= 8 ? 1 : V == 4 ? 2 : 4;

// N entries, each added to its own chain as far as there are enough.
template <int V, int N, class Value, int C>
SW_INLINE void entries(const float* x, const uint8_t* columns, const typename Value::Type* values, __m256 (&sum)[C][V]) {
    each<N>([&](auto u) {
        const float* lane = x + static_cast<int64_t>(columns[u]) * (8 * V);
        const __m256 w = Value::broadcast(values + u);
        each<V>([&](auto v) { sum[u % C][v] = _mm256_fmadd_ps(w, _mm256_load_ps(lane + 8 * v), sum[u % C][v]); });
    });
}

template <int V, class Value>
SW_INLINE void segment(const float* x, const uint8_t* columns, const typename Value::Type* values, int64_t n,
                       const float* from, __m256 start, float* to) {
    constexpr int C = kChains<V>, N = C > kPadded ? C : kPadded;
    __m256 sum[C][V];
    each<V>([&](auto v) { sum[0][v] = from ? _mm256_load_ps(from + 8 * v) : start; });
    each<C - 1>([&](auto c) { each<V>([&](auto v) { sum[c + 1][v] = _mm256_setzero_ps(); }); });
    int64_t i = 0;
    for (; i + N <= n; i += N) entries<V, N, Value>(x, columns + i, values + i, sum);
    if (N > kPadded && i < n) entries<V, kPadded, Value>(x, columns + i, values + i, sum);
    each<V>([&](auto v) {
        each<C - 1>([&](auto c) { sum[0][v] = _mm256_add_ps(sum[0][v], sum[c + 1][v]); });
        _mm256_store_ps(to + 8 * v, sum[0][v]);
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

struct Block {
    int64_t first, height;
};

// One row block times one K-block `x`.
template <int V, bool Write, class Value>
void block(const Tile& a, int64_t k_blocks, int64_t kb, Block b, const float* x, float* sums, Fetch& fetch) {
    constexpr int T = 8 * V;
    const auto* values = static_cast<const typename Value::Type*>(a.values);
    const int64_t s = b.first * k_blocks + kb * b.height;
    for (int64_t i = 0; i < b.height; ++i) {
        const int64_t e = a.ptr[s + i], n = a.ptr[s + i + 1] - e, row = a.row_of[s + i];
        float* to = sums + row * T;
        if constexpr (V >= 8) fetch.four<Write>();
        if (kb == 0) {
            const __m256 start = a.bias ? _mm256_broadcast_ss(a.bias + b.first + row) : _mm256_setzero_ps();
            segment<V, Value>(x, a.columns + e, values + e, n, nullptr, start, to);
        } else {
            segment<V, Value>(x, a.columns + e, values + e, n, to, _mm256_setzero_ps(), to);
        }
    }
}

// Tokens [token, token + 8V) of row blocks [from, to).
template <int V, class Value>
void tokens_by_rows(const Tile& a, int64_t token, int64_t from, int64_t to, float* x, float* sums) {
    constexpr int T = 8 * V;
    const int64_t k_blocks = (a.in + a.k_block - 1) / a.k_block, tokens = a.rows - token < T ? a.rows - token : T;
    const int64_t step = kStripe / a.row_block > 0 ? kStripe / a.row_block : 1;
    const auto at = [&](int64_t b) {
        const int64_t first = b * a.row_block;
        return Block{first, a.out - first < a.row_block ? a.out - first : a.row_block};
    };
    for (int64_t stripe = from; stripe < to; stripe += step) {
        const int64_t end = stripe + step < to ? stripe + step : to;
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            const int64_t k = kb * a.k_block, width = a.in - k < a.k_block ? a.in - k : a.k_block;
            const float* source = a.x + token * a.in + k;
            if (stripe == from) pack_tokens<T>(source, a.in, width, tokens, x + k * T);
            Fetch ahead;  // not where rows lie a multiple of 4 KiB apart: their lines would displace one another
            if (stripe == from && kb + 1 < k_blocks && a.in % 1024) ahead = {source + a.k_block, a.in, tokens, (width + 15) / 16};
            for (int64_t b = stripe; b < end; ++b) {
                float* part = sums + (b - stripe) * a.row_block * T;
                if (kb + 1 == k_blocks) {
                    Fetch y{a.y + token * a.out + at(b).first, a.out, tokens, (at(b).height + 15) / 16};
                    block<V, true, Value>(a, k_blocks, kb, at(b), x + k * T, part, y);
                    unpack_tokens<T>(part, at(b).height, tokens, a.y + token * a.out + at(b).first, a.out);
                } else {
                    block<V, false, Value>(a, k_blocks, kb, at(b), x + k * T, part, ahead);
                }
            }
        }
    }
}

template <class Value>
void run(const Tile& a) {
    const int64_t blocks = (a.out + a.row_block - 1) / a.row_block, tiles = (a.rows + kTokens - 1) / kTokens;
    const int64_t work = a.rows * a.ptr[a.out * ((a.in + a.k_block - 1) / a.k_block)];
    split(tiles * blocks, a.threads, work, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* x = scratch.floats((a.in + kStripe + a.row_block) * kTokens);
        float* sums = x + a.in * kTokens;
        while (begin < end) {
            const int64_t tile = begin / blocks, from = begin % blocks, left = a.rows - tile * kTokens;
            const int64_t to = from + end - begin < blocks ? from + end - begin : blocks;
            const auto size = left > 32   ? tokens_by_rows<8, Value>
                              : left > 16 ? tokens_by_rows<4, Value>
                              : left > 8  ? tokens_by_rows<2, Value>
                                          : tokens_by_rows<1, Value>;
            size(a, tile * kTokens, from, to, x, sums);
            begin += to - from;
        }
    });
}

}  // namespace

void tile(const Tile& a) { a.bf16 ? run<BF16>(a) : run<F32>(a); }

}  // namespace sparseworks::avx2
