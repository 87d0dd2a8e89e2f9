// One pass each over what lies between sparse products.
#include <cmath>

#include "../activations.h"
#include "../parallel.h"
#include "../simd.h"
#include "between.h"

namespace sparseworks::SW_ISA {
namespace {

float mean_square(const float* x, int64_t width) {
    Lanes squares[2] = {zero(), zero()};
    int64_t c = 0;
    for (; c + 2 * W <= width; c += 2 * W) {
        each<2>([&](auto i) {
            const Lanes v = load(x + c + i * W);
            squares[i] = multiply_add(v, v, squares[i]);
        });
    }
    for (; c < width; c += W) {
        const Lanes v = load_first(x + c, width - c);
        squares[0] = multiply_add(v, v, squares[0]);
    }
    return sum(squares[0] + squares[1]) / static_cast<float>(width);
}

void add_row(const float* x, const float* added, float* total, int64_t width) {
    for (int64_t c = 0; c < width; c += W) {
        store_first(total + c, load_first(x + c, width - c) + load_first(added + c, width - c), width - c);
    }
}

void norm_row(const RmsNorm& a, int64_t row) {
    const float* x = a.x + row * a.width;
    float* y = a.y + row * a.width;
    if (a.added) {
        float* total = a.total + row * a.width;
        add_row(x, a.added + row * a.width, total, a.width);
        x = total;
    }
    const float factor = 1.0f / std::sqrt(mean_square(x, a.width) + a.eps);
    int64_t c = 0;
    for (; c + W <= a.width; c += W) store(y + c, load(a.weight + c) * (load(x + c) * factor));
    if (c < a.width) {
        const int64_t left = a.width - c;
        store_first(y + c, load_first(a.weight + c, left) * (load_first(x + c, left) * factor), left);
    }
}

}  // namespace

void rms_norm(const RmsNorm& a) {
    split(a.rows, a.threads, a.rows * a.width, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) norm_row(a, row);
    });
}

void gated(const Gated& a) {
    constexpr int64_t kUnit = 64;
    with_activation(static_cast<Activation>(a.activation), [&](auto kind) {
        constexpr int64_t kCost = 8;  // of an element against a multiply-add
        split((a.count + kUnit - 1) / kUnit, a.threads, a.count * kCost, [&](int64_t begin, int64_t end) {
            const int64_t last = end * kUnit < a.count ? end * kUnit : a.count;
            int64_t n = begin * kUnit;
            for (; n + W <= last; n += W) store(a.y + n, activate<kind()>(load(a.gate + n)) * load(a.up + n));
            if (n < last) {
                const Lanes g = load_first(a.gate + n, last - n), u = load_first(a.up + n, last - n);
                store_first(a.y + n, activate<kind()>(g) * u, last - n);
            }
        });
    });
}

void add(const Add& a) { add_row(a.y, a.x, a.y, a.count); }

}  // namespace sparseworks::SW_ISA
