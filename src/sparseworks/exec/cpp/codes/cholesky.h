// Growing Cholesky factors: what the kernels are given, checked by Python.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

constexpr int kSignals = 16;  // interleaved: a multiple of every instruction set's lanes

// Of each group of 16 signals: the lower triangle by rows (most (most + 1) / 2, 16) with inverses on the diagonal, the forward
// solution (most, 16) of L y = right, and the chosen atoms (most, 16), -1 where there is none.
struct Factors {
    int64_t signals, size, most;
    float *factor, *known;
    int threads;
};
struct Append : Factors {
    const float *gram, *right;  // (atoms, atoms), (signals, atoms)
    int64_t atoms;
    const int64_t* added;  // (signals), -1 for none
    int32_t* chosen;
    uint8_t* grown;  // (signals)
    float least;     // of the diagonal: a smaller pivot is refused
};
struct Solve : Factors {
    float* out;  // (signals, size)
};

SW_KERNEL(cholesky_append, Append)
SW_KERNEL(cholesky_solve, Solve)

}  // namespace sparseworks
