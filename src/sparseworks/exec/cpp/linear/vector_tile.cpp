// Any support, many rows of x, in floating point: an entry is one weight.
#include "tiles.h"

namespace sparseworks::SW_ISA {
namespace {

template <class T>
struct Float {
    using Stored = T;
    using Cell = float;
    using Vector = Lanes;

    static constexpr bool kByBlock = true;
    static constexpr int64_t kTile = 32;  // of 64 tokens half as many inputs would stay in L1, and twice the sums would leave it

    static SW_INLINE Lanes multiply_add(Lanes w, Lanes x, Lanes sum) { return ::multiply_add(w, x, sum); }
    static SW_INLINE Lanes start(const float* bias, int64_t row) { return bias ? all(bias[row]) : zero(); }

    template <int Tokens>
    Fetch pack(const Segments& a, int64_t kb, int64_t k_blocks, int64_t token, int64_t tokens, float* x, float*) const {
        const int64_t k = kb * a.k_block, width = a.in - k < a.k_block ? a.in - k : a.k_block;
        const float* source = a.x + token * a.in + k;
        pack_tokens<Tokens>(source, a.in, width, tokens, x);
        // Not ahead where rows lie a multiple of 4 KiB apart: their lines would displace one another.
        if (kb + 1 == k_blocks || a.in % 1024 == 0) return {};
        return {source + a.k_block, a.in, tokens, (width + 15) / 16};
    }

    template <int Tokens>
    void unpack(const Segments& a, const float* sums, int64_t first, int64_t height, int64_t token, int64_t tokens,
                const float*) const {
        unpack_tokens<Tokens>(sums, height, tokens, a.y + token * a.out + first, a.out);
    }
};

}  // namespace

void tile(const Tile& a) {
    const Segments s{a, a.ptr, a.columns, a.values, a.row_of, a.in, a.k_block, a.row_block};
    a.bf16 ? tiles(Float<uint16_t>{}, s) : tiles(Float<float>{}, s);
}

}  // namespace sparseworks::SW_ISA
