// One comparison a vector of pre-activations with the k-th best of some time ago; dictionary rows are summed in registers, eight vectors at a time.
#include <vector>

#include "../best.h"
#include "codes.h"

namespace sparseworks::SW_ISA {
namespace {

void scan(const Offer& a, int64_t row, Gathered best) {
    const float* tile = a.tile + row * a.cols;
    float* values = a.values + row * a.k;
    int64_t* indices = a.indices + row * a.k;
    const auto read = [&](int64_t c) { return a.relu && tile[c] < 0 ? 0.0f : tile[c]; };
    for (int64_t j = 0; j < a.size; ++j) best.add(values[j], indices[j]);
    int64_t c = 0;
    for (; c < a.cols && best.size < a.k; ++c) {
        if (tile[c] != tile[c]) *a.bad = 1;
        best.add(read(c), a.first + c);
    }
    best.cut();
    Ints ordered = bits(zero()) - 1;  // until a NaN is seen
    for (; c + 4 * W <= a.cols; c += 4 * W) {
        const Lanes bar = all(best.bar);
        Lanes v[4];
        each<4>([&](auto u) {
            v[u] = load(tile + c + u * W);
            ordered &= v[u] == v[u];
            if (a.relu) v[u] = greater(zero(), v[u]);
        });
        each<4>([&](auto u) {
            for (uint32_t mask = above(v[u], bar); mask; mask &= mask - 1) {
                const int64_t at = c + u * W + __builtin_ctz(mask);
                best.add(read(at), a.first + at);
            }
        });
        best.make_room();
    }
    for (; c < a.cols; ++c) {
        if (tile[c] != tile[c]) *a.bad = 1;
        else if (const float v = read(c); v > best.bar) best.add(v, a.first + c), best.make_room();
    }
    if (any_above(__builtin_convertvector(ordered + 1, Lanes), zero())) *a.bad = 1;
    best.cut();
    if (a.last) best.sort();
    for (int64_t j = 0; j < best.size; ++j) {
        values[j] = Gathered::score(best.key[j]);
        indices[j] = Gathered::id(best.key[j]);
    }
}

template <int N>
SW_INLINE void add_rows(const Decode& a, int64_t row, int64_t f) {
    const float* values = a.values + row * a.k;
    const int64_t* indices = a.indices + row * a.k;
    Lanes sums[N];
    each<N>([&](auto i) { sums[i] = a.bias ? load(a.bias + f + i * W) : zero(); });
    for (int64_t j = 0; j < a.k; ++j) {
        const float* atom = a.dictionary + indices[j] * a.features + f;
        if (j + 4 < a.k) {
            const float* next = a.dictionary + indices[j + 4] * a.features + f;
            each<(N * W + 15) / 16>([&](auto i) { __builtin_prefetch(next + 16 * i); });
        }
        const Lanes v = all(values[j]);
        each<N>([&](auto i) { sums[i] = multiply_add(load(atom + i * W), v, sums[i]); });
    }
    each<N>([&](auto i) { store(a.y + row * a.features + f + i * W, sums[i]); });
}

}  // namespace

void offer(const Offer& a) {
    split(a.rows, a.threads, a.rows * a.cols, [&](int64_t begin, int64_t end) {
        std::vector<uint64_t> room(2 * a.k + 4 * W);
        for (int64_t r = begin; r < end; ++r) scan(a, r, Gathered{room.data(), a.k});
    });
}

void decode(const Decode& a) {
    split(a.rows, a.threads, a.rows * a.k * a.features, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            int64_t f = 0;
            for (; f + 12 * W <= a.features; f += 12 * W) add_rows<12>(a, r, f);
            for (; f + 4 * W <= a.features; f += 4 * W) add_rows<4>(a, r, f);
            for (; f + W <= a.features; f += W) add_rows<1>(a, r, f);
            for (; f < a.features; ++f) {
                float s = a.bias ? a.bias[f] : 0.0f;
                for (int64_t j = 0; j < a.k; ++j) {
                    s += a.values[r * a.k + j] * a.dictionary[a.indices[r * a.k + j] * a.features + f];
                }
                a.y[r * a.features + f] = s;
            }
        }
    });
}

void decode_values(const DecodeValues& a) {
    split(a.rows, a.threads, a.rows * a.k * a.features, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * a.k; i < end * a.k; ++i) {
            const float* grad = a.grad + i / a.k * a.features;
            const float* atom = a.dictionary + a.indices[i] * a.features;
            Lanes total[4] = {};
            int64_t f = 0;
            for (; f + 4 * W <= a.features; f += 4 * W) {
                each<4>([&](auto u) { total[u] = multiply_add(load(grad + f + u * W), load(atom + f + u * W), total[u]); });
            }
            float s = sum(total[0] + total[1] + (total[2] + total[3]));
            for (; f < a.features; ++f) s += grad[f] * atom[f];
            a.out[i] = s;
        }
    });
}

// Threads take slices of the features, so that no two write the same place and the order of sums never changes.
void decode_dictionary(const DecodeDictionary& a) {
    split(a.features, a.threads, a.rows * a.k * a.features, [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < a.rows * a.k; ++i) {
            const float* grad = a.grad + i / a.k * a.features;
            float* atom = a.out + a.indices[i] * a.features;
            const float v = a.values[i];
            int64_t f = begin;
            for (; f + W <= end; f += W) store(atom + f, multiply_add(load(grad + f), all(v), load(atom + f)));
            for (; f < end; ++f) atom[f] += v * grad[f];
        }
    });
}

}  // namespace sparseworks::SW_ISA
