// Any support, many rows of x, in floating point: an entry is one weight.
#include "avx2_tiles.h"

namespace sparseworks::avx2 {
namespace {

template <class Value>
struct Float {
    using Stored = typename Value::Type;
    using Cell = float;
    using Lanes = __m256;

    static constexpr bool kByBlock = true;
    static constexpr int64_t kTile = 32;  // of 64 tokens half as many inputs would stay in L1, and twice the sums would leave it

    template <int N>
    static SW_INLINE void broadcast(const Stored* p, __m256 (&w)[N]) {
        Value::template broadcast<N>(p, w);
    }
    static SW_INLINE __m256 load(const float* p) { return _mm256_load_ps(p); }
    static SW_INLINE void store(float* p, __m256 v) { _mm256_store_ps(p, v); }
    static SW_INLINE __m256 zero() { return _mm256_setzero_ps(); }
    static SW_INLINE __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
    static SW_INLINE __m256 multiply_add(__m256 w, __m256 x, __m256 sum) { return _mm256_fmadd_ps(w, x, sum); }
    static SW_INLINE __m256 start(const float* bias, int64_t row) {
        return bias ? _mm256_broadcast_ss(bias + row) : _mm256_setzero_ps();
    }

    template <int T>
    Fetch pack(const Segments& a, int64_t kb, int64_t k_blocks, int64_t token, int64_t tokens, float* x, float*) const {
        const int64_t k = kb * a.k_block, width = a.in - k < a.k_block ? a.in - k : a.k_block;
        const float* source = a.x + token * a.in + k;
        pack_tokens<T>(source, a.in, width, tokens, x);
        // Not ahead where rows lie a multiple of 4 KiB apart: their lines would displace one another.
        if (kb + 1 == k_blocks || a.in % 1024 == 0) return {};
        return {source + a.k_block, a.in, tokens, (width + 15) / 16};
    }

    template <int T>
    void unpack(const Segments& a, const float* sums, int64_t first, int64_t height, int64_t token, int64_t tokens,
                const float*) const {
        unpack_tokens<T>(sums, height, tokens, a.y + token * a.out + first, a.out);
    }
};

}  // namespace

void tile(const Tile& a) {
    const Segments s{a, a.ptr, a.columns, a.values, a.row_of, a.in, a.k_block, a.row_block};
    a.bf16 ? tiles(Float<BF16>{}, s) : tiles(Float<F32>{}, s);
}

}  // namespace sparseworks::avx2
