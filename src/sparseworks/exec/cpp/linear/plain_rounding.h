// Rows of x in fixed point, in plain C++.
#pragma once
#include <algorithm>
#include <cmath>

#include "linear.h"

namespace sparseworks::portable {

// x rounded to whole numbers of at most `most_level`; what a level is worth, or NaN (and zeros) if x is not finite.
static inline float round_row(const float* x, int64_t n, int64_t most_level, int64_t* to) {
    float most = 0.0f;
    bool finite = true;
    for (int64_t k = 0; k < n; ++k) most = std::max(most, std::fabs(x[k])), finite = finite && std::isfinite(x[k]);
    const float limit = static_cast<float>(most_level), inverse = finite && most > kTiny ? limit / most : 0.0f;
    for (int64_t k = 0; k < n; ++k) to[k] = finite ? static_cast<int64_t>(std::nearbyint(x[k] * inverse)) : 0;
    return finite ? most / limit : NAN;
}

}  // namespace sparseworks::portable
