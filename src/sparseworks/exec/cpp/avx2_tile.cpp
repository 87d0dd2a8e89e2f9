// Any support, many rows of x: lanes are tokens. Per kept weight one broadcast and contiguous multiply-adds over a
// feature-major tile [K][T] of x, of which a K-block stays in L1; sums of a row block stay in L2.
#include "avx2.h"

namespace sparseworks::avx2 {
namespace {

constexpr int kUnroll = 4;  // segments are padded to this

// Independent sums per lane group, so that eight chains hide the latency of a multiply-add.
template <int V>
constexpr int kChains = V >= 8 ? 1 : V == 4 ? 2 : 4;

template <int V, class Value>
SW_INLINE void segment(const float* x, const uint8_t* columns, const typename Value::Type* values, int64_t n,
                       const float* from, __m256 start, float* to) {
    constexpr int C = kChains<V>, T = 8 * V;
    __m256 sum[C][V];
    each<V>([&](auto v) { sum[0][v] = from ? _mm256_load_ps(from + 8 * v) : start; });
    each<C - 1>([&](auto c) { each<V>([&](auto v) { sum[c + 1][v] = _mm256_setzero_ps(); }); });
    for (int64_t i = 0; i < n; i += kUnroll) {
        each<kUnroll>([&](auto u) {
            const float* lane = x + static_cast<int64_t>(columns[i + u]) * T;
            const __m256 w = Value::broadcast(values + i + u);
            each<V>([&](auto v) {
                sum[u % C][v] = _mm256_fmadd_ps(w, _mm256_load_ps(lane + 8 * v), sum[u % C][v]);
            });
        });
    }
    each<V>([&](auto v) {
        each<C - 1>([&](auto c) { sum[0][v] = _mm256_add_ps(sum[0][v], sum[c + 1][v]); });
        _mm256_store_ps(to + 8 * v, sum[0][v]);
    });
}

struct Block {
    int64_t first, height;
};

template <int V, class Value>
void block(const Tile& a, int64_t k_blocks, Block b, const float* x, float* sums) {
    constexpr int T = 8 * V;
    const auto* values = static_cast<const typename Value::Type*>(a.values);
    for (int64_t kb = 0; kb < k_blocks; ++kb) {
        const int64_t s = b.first * k_blocks + kb * b.height;
        const float* part = x + kb * a.k_block * T;
        for (int64_t i = 0; i < b.height; ++i) {
            const int64_t e = a.ptr[s + i], n = a.ptr[s + i + 1] - e, row = a.row_of[s + i];
            float* to = sums + row * T;
            if (kb == 0) {
                const __m256 start = a.bias ? _mm256_broadcast_ss(a.bias + b.first + row) : _mm256_setzero_ps();
                segment<V, Value>(part, a.columns + e, values + e, n, nullptr, start, to);
            } else {
                segment<V, Value>(part, a.columns + e, values + e, n, to, _mm256_setzero_ps(), to);
            }
        }
    }
}

// Tokens [token, token + 8V) of one row block.
template <int V, class Value>
void item(const Tile& a, int64_t k_blocks, int64_t token, Block b, bool repack, float* x, float* sums) {
    constexpr int T = 8 * V;
    const int64_t tokens = a.rows - token < T ? a.rows - token : T;
    if (repack) pack_tokens<T>(a.x + token * a.in, a.in, tokens, x);
    block<V, Value>(a, k_blocks, b, x, sums);
    unpack_tokens<T>(sums, b.height, tokens, a.y + token * a.out + b.first, a.out);
}

template <class Value>
void run(const Tile& a) {
    const int64_t k_blocks = (a.in + a.k_block - 1) / a.k_block;
    const int64_t blocks = (a.out + a.row_block - 1) / a.row_block, tiles = (a.rows + 63) / 64;
    split(tiles * blocks, a.threads, a.rows * a.ptr[a.out * k_blocks], [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* x = scratch.floats((a.in + a.row_block) * 64);
        float* sums = x + a.in * 64;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t token = i / blocks * 64, first = i % blocks * a.row_block, left = a.rows - token;
            const Block b{first, a.out - first < a.row_block ? a.out - first : a.row_block};
            const bool repack = i == begin || first == 0;
            const auto size = left > 32 ? item<8, Value> : left > 16 ? item<4, Value> : left > 8 ? item<2, Value> : item<1, Value>;
            size(a, k_blocks, token, b, repack, x, sums);
        }
    });
}

}  // namespace

void tile(const Tile& a) { a.bf16 ? run<BF16>(a) : run<F32>(a); }

}  // namespace sparseworks::avx2
