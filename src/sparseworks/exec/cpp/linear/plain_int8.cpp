// Dense int8 weights times rows of x in fixed point, in plain C++.
#include <vector>

#include "../parallel.h"
#include "plain_rounding.h"

namespace sparseworks::portable {

void int8(const Int8& a) {
    split(a.rows, a.threads, a.rows * a.in * a.out, [&](int64_t begin, int64_t end) {
        std::vector<int64_t> x(a.in);
        for (int64_t m = begin; m < end; ++m) {
            const float scale = round_row(a.x + m * a.in, a.in, a.limit, x.data());
            for (int64_t n = 0; n < a.out; ++n) {
                int64_t sum = 0;
                for (int64_t k = 0; k < a.in; ++k) sum += a.weight[n * a.in + k] * x[k];
                a.y[m * a.out + n] = static_cast<float>(sum) * scale * a.scale[n] + (a.bias ? a.bias[n] : 0.0f);
            }
        }
    });
}

}  // namespace sparseworks::portable
