// Pairs of adjacent inputs, many rows of x, in 16-bit fixed point.
#include "fixed.h"

namespace sparseworks::SW_ISA {

void pairs(const Pairs& a) {
    const Segments s{a, a.ptr, a.columns, a.values, a.row_of, a.in / 2, a.k_block, a.row_block};
    tiles(Fixed{a.scale, static_cast<float>(a.limit)}, s);
}

}  // namespace sparseworks::SW_ISA
