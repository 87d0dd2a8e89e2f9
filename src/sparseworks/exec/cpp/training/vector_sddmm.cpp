// The gradient of kept weights, from tiles: cells are shared out to threads, so no two of them write to the same entry.
#include "sddmm.h"

namespace sparseworks::SW_ISA {

void sddmm(const Sddmm& a) {
    const int64_t k_blocks = (a.w.width + a.w.k_block - 1) / a.w.k_block, blocks = (a.w.rows + a.w.row_block - 1) / a.w.row_block;
    split(blocks * k_blocks, a.threads, a.tokens * a.w.rows * 8, [&](int64_t begin, int64_t end) {
        for (int64_t token = 0; token < a.tokens; token += kTile) {
            with_vectors(a.tokens - token, [&](auto v) {
                for (int64_t i = begin; i < end; ++i) {
                    sample<v>(a.w, a.dy + token * a.w.rows, a.x + token * a.w.width, token > 0, i / k_blocks, i % k_blocks, a.gradient);
                }
            });
        }
    });
}

}  // namespace sparseworks::SW_ISA
