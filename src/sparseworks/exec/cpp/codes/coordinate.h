// One coordinate of a penalised quadratic, and the two sums over a vector that descent spends its time in.
#pragma once
#include <algorithm>
#include <cmath>

#include "../simd.h"

namespace sparseworks::SW_ISA {
namespace {

template <class T>
SW_INLINE void add(T* __restrict y, const T* __restrict x, T a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// One sum in P parts, which the compiler may keep in vectors.
template <int P, class T>
SW_INLINE T dot(const T* __restrict x, const T* __restrict y, int64_t n) {
    T part[P] = {};
    int64_t i = 0;
    for (; i + P <= n; i += P) {
        for (int p = 0; p < P; ++p) part[p] += x[i + p] * y[i + p];
    }
    T s = 0;
    for (; i < n; ++i) s += x[i] * y[i];
    for (int p = 0; p < P; ++p) s += part[p];
    return s;
}

// Kind 0: slope |z|; 1: that with z >= 0; 2: minimax concave with this gamma.
template <class T, int Kind>
struct Coordinate {
    const T ridge, gamma;

    // Distance of -gradient to the subdifferential.
    SW_INLINE T violation(T at, T grad, T l) const {
        grad += ridge * at;
        if (at == 0) return std::max<T>((Kind == 1 ? -grad : std::fabs(grad)) - l, 0);
        if (Kind == 2) l = std::max<T>(l - std::fabs(at) / gamma, 0);
        return std::fabs(grad + (at > 0 ? l : -l));
    }

    // argmin of curvature / 2 (u - v)^2 + ridge u^2 / 2 + g(u), given v and the slope l.
    SW_INLINE T prox(T v, T curvature, T l) const {
        const T size = std::fabs(v), moved = (Kind == 1 ? v : size) * curvature - l;
        if (Kind == 2) {
            if (curvature * gamma <= 1) return size * size * curvature > l * l * gamma ? v : 0;
            if (size > gamma * l) return v;
            return moved <= 0 ? 0 : std::copysign(moved / (curvature - 1 / gamma), v);
        }
        return moved <= 0 ? 0 : std::copysign(moved / (curvature + ridge), v);
    }
};

}  // namespace
}  // namespace sparseworks::SW_ISA
