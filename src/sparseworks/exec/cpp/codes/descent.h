// Coordinate descent, on inner products or on a residual: what the kernels are given, checked by Python.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// Of each row: min_z z G z / 2 - <right, z> + ridge |z|^2 / 2 + sum_j g_j(z_j), g_j of slope scale_row * slopes_j at 0.
template <class T>
struct Descent {
    const T *gram, *right;     // (atoms, atoms) symmetric, (rows, atoms)
    const T *slopes, *scale;   // (atoms), (rows)
    const T* tolerance;        // (rows): largest violation of the optimality condition that is left
    T* z;                      // (rows, atoms): start, then result
    int64_t* epochs;           // (rows): passes over the working set
    int64_t rows, atoms, most;
    int kind;                  // 0: |z|; 1: |z| with z >= 0; 2: minimax concave with this gamma
    double ridge, gamma;
    int threads;
};
using DescentSingle = Descent<float>;
using DescentDouble = Descent<double>;

// The same for one row with its residual y - z D instead of inner products, over the atoms in `kept`.
template <class T>
struct ColumnDescent {
    const T* atoms;                // (any, features)
    const int64_t* kept;           // (count): rows of `atoms`
    const T *slopes, *curvature;   // (count): the latter their squared norms
    T *z, *residual;               // (count), (features): start, then result
    int64_t* visits;               // (1): atoms that were looked at, until `most` are exceeded
    bool* done;                    // whether the last pass over all met the goal
    int64_t count, features, most;
    double goal;                   // largest violation that is left
    int kind;
    double ridge, gamma;
};
using ColumnDescentSingle = ColumnDescent<float>;
using ColumnDescentDouble = ColumnDescent<double>;

SW_KERNEL(descend_single, DescentSingle)
SW_KERNEL(descend_double, DescentDouble)
SW_KERNEL(descend_columns_single, ColumnDescentSingle)
SW_KERNEL(descend_columns_double, ColumnDescentDouble)

}  // namespace sparseworks
