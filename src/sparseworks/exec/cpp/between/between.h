// What lies between the sparse products of a layer: as many small passes in torch cost a decoder more than its products at one token.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// y = weight x / sqrt(mean(x^2) + eps), rows of `width`. With `added` it is the norm of total = x + added.
struct RmsNorm {
    const float *x, *added, *weight;  // `added` may be null
    float *total, *y;
    int64_t rows, width;
    float eps;
    int threads;
};
// y = activation(gate) up.
struct Gated {
    const float *gate, *up;
    float* y;
    int64_t count;
    int activation;
    int threads;
};
// y += x.
struct Add {
    const float* x;
    float* y;
    int64_t count;
};

SW_KERNEL(rms_norm, RmsNorm)
SW_KERNEL(gated, Gated)
SW_KERNEL(add, Add)

}  // namespace sparseworks
