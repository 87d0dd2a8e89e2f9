// Which inputs of a row of x are read: kernels over input-major weights go through this list.
#pragma once
#include "../simd.h"

namespace {

constexpr int kTogether = 8;  // the most active inputs that a pass takes

struct Active {
    int32_t* inputs;
    float* factors;
    int64_t count;
};

// Inputs with |x| > threshold, NaN among them.
SW_INLINE Active active(const float* x, int64_t in, float threshold, Scratch& scratch) {
    float* memory = scratch.floats(2 * (in + kTogether));
    Active list{reinterpret_cast<int32_t*>(memory), memory + in + kTogether, 0};
    for (int64_t k = 0; k < in; ++k) {
        list.inputs[list.count] = static_cast<int32_t>(k);
        list.factors[list.count] = x[k];
        list.count += !(std::fabs(x[k]) <= threshold);
    }
    return list;
}

}  // namespace
