// Sparse codes: top-k of tiles of pre-activations, and sums of k rows of a dictionary. Codes are (rows, k), indices int64.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// Offers columns [first, first + cols) of a tile to the best k of each row, of which `size` are held; `bad` is set by a NaN.
struct Offer {
    const float* tile;
    int64_t rows, cols, first, k, size;
    bool relu, last;
    float* values;
    int64_t* indices;
    int32_t* bad;
    int threads;
};

struct Coded {
    const int64_t* indices;
    int64_t rows, k, width, features;
    int threads;
};
struct Decode : Coded {
    const float *values, *dictionary, *bias;  // bias may be null
    float* y;
};
struct DecodeValues : Coded {  // gradient of the values
    const float *grad, *dictionary;
    float* out;
};
struct DecodeDictionary : Coded {  // gradient of the dictionary, added to `out`
    const float *grad, *values;
    float* out;
};

SW_KERNEL(offer, Offer)
SW_KERNEL(decode, Decode)
SW_KERNEL(decode_values, DecodeValues)
SW_KERNEL(decode_dictionary, DecodeDictionary)

}  // namespace sparseworks
