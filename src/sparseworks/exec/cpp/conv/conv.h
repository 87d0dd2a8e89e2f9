// Arguments of the sparse convolution.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// A map is laid out flat, [channel][phase][row][column], so that every tap reads what its output positions need as one run: output
// p (rows of `pitch`, of which `wide` count) is the sum of value * map[offset + p]. A stride reads one phase per tap.
struct Layout {
    int64_t channels, high, wide;                // of the input map
    int64_t stride_y, stride_x, top, left;       // top and left: padding
    int64_t phases_y, phases_x;                  // phases that any tap reads
    int64_t pitch, plane;                        // floats in a row, and in a plane (one phase of one channel)
};

// Entries of output o whose channels lie in block b: [starts[b * out + o], starts[(b + 1) * out + o]).
struct Conv {
    const float* x;
    float* y;
    const float* bias;
    int64_t images, out, out_high, out_wide, blocks;
    const int32_t* starts;
    const int32_t* offsets;
    const float* values;
    Layout layout;
    int threads;
};

SW_KERNEL(conv, Conv)

}  // namespace sparseworks
