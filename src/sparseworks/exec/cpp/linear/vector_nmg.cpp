// n:m:g, many rows of x: lanes are tokens. In each chunk of outputs and block of m inputs, the n inputs of a choice are loaded once
// and serve g outputs, whose sums lie in memory by row; a few blocks of x and the sums of a chunk stay in L1.
#include "../simd.h"
#include "linear.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kTile = 32;          // tokens at once
constexpr int64_t kInputs = 64;        // of a tile that a chunk goes over before the next one
constexpr int64_t kStripe = 256;       // outputs whose sums are kept at once

// g outputs of one choice (N of its n inputs): V vectors of tokens.
template <int N, int V, class Row, class T>
SW_INLINE void choice(const float* x, const uint8_t* inputs, int64_t stride, const Row* rows, const T* values, int64_t n,
                      int64_t g, float* sums) {
    Lanes lanes[N][V];
    each<N>([&](auto j) { each<V>([&](auto v) { lanes[j][v] = load(x + inputs[j] * stride + v * W); }); });
    for (int64_t i = 0; i < g; ++i, values += n) {
        float* at = sums + rows[i] * stride;
        Lanes w[N];
        each<N>([&](auto j) { w[j] = all(::widen(values[j])); });
        each<V>([&](auto v) {
            Lanes sum = load(at + v * W);
            each<N>([&](auto j) { sum = multiply_add(w[j], lanes[j][v], sum); });
            store(at + v * W, sum);
        });
    }
}

// Blocks [from, to) of a chunk times V vectors of tokens: inputs [j, j + N) of every choice.
template <int N, int V, class Row, class T>
void inputs(const Nmg& a, const float* x, int64_t stride, int64_t chunk, int64_t from, int64_t to, int64_t j, float* sums) {
    const int64_t height = a.count * a.g, first = chunk * (a.in / a.m) + from, count = a.count, g = a.g, n = a.n;
    const Row* rows = static_cast<const Row*>(a.order) + first * height;
    const T* values = static_cast<const T*>(a.values) + first * height * n + j;
    for (const float* block = x + from * a.m * stride; from < to; ++from, block += a.m * stride) {
        const uint8_t* table = a.choices + j;
        for (int64_t c = 0; c < count; ++c, table += n, rows += g, values += g * n) {
            choice<N, V>(block, table, stride, rows, values, n, g, sums);
        }
    }
}

// Choices of more than four inputs are taken four at a time, since as many lie in registers.
template <int V, class Row, class T>
void pass(const Nmg& a, const float* x, int64_t stride, int64_t chunk, int64_t from, int64_t to, float* sums) {
    for (int64_t j = 0; j < a.n; j += 4) {
        const auto some = a.n - j == 1   ? inputs<1, V, Row, T>
                          : a.n - j == 2 ? inputs<2, V, Row, T>
                          : a.n - j == 3 ? inputs<3, V, Row, T>
                                         : inputs<4, V, Row, T>;
        some(a, x, stride, chunk, from, to, j, sums);
    }
}

template <class Row, class T>
void passes(const Nmg& a, const float* x, int64_t stride, int64_t chunk, int64_t from, int64_t to, float* sums) {
    int64_t t = 0;
    if (a.n <= 2) {
        for (; t + 4 * W <= stride; t += 4 * W) pass<4, Row, T>(a, x + t, stride, chunk, from, to, sums + t);
    }
    for (; t + 2 * W <= stride; t += 2 * W) pass<2, Row, T>(a, x + t, stride, chunk, from, to, sums + t);
    for (; t < stride; t += W) pass<1, Row, T>(a, x + t, stride, chunk, from, to, sums + t);
}

SW_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Tokens [token, token + tokens) of chunks [first, last); x is the whole feature-major tile.
template <class Row, class T>
void stripe(const Nmg& a, const float* x, int64_t stride, int64_t token, int64_t tokens, int64_t first, int64_t last,
            float* sums) {
    const int64_t height = a.count * a.g, blocks = a.in / a.m, step = kInputs > a.m ? kInputs / a.m : 1;
    const int64_t row = first * height, rows = (last - first) * height;
    for (int64_t r = 0; r < rows; ++r) {
        const Lanes start = all(a.bias ? a.bias[row + r] : 0.0f);
        for (int64_t t = 0; t < stride; t += W) store(sums + r * stride + t, start);
    }
    for (int64_t b = 0; b < blocks; b += step) {
        for (int64_t c = first; c < last; ++c) {
            passes<Row, T>(a, x, stride, c, b, min(b + step, blocks), sums + (c - first) * height * stride);
        }
    }
    for (int64_t r = 0; r < rows; r += W) {
        for (int64_t t = 0; t < tokens; t += W) {
            transpose(sums + r * stride + t, stride, rows - r, stride - t, a.y + (token + t) * a.out + row + r, a.out, tokens - t,
                      rows - r);
        }
    }
}

template <class Row, class T>
void run(const Nmg& a) {
    const int64_t height = a.count * a.g, chunks = a.out / height, step = kStripe > height ? kStripe / height : 1;
    const int64_t stripes = (chunks + step - 1) / step, tiles = (a.rows + kTile - 1) / kTile;
    split(tiles * stripes, a.threads, a.rows * a.out * (a.in / a.m) * a.n, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* x = scratch.floats((a.in + W + step * height + W) * kTile);
        float* sums = x + (a.in + W) * kTile;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t token = i / stripes * kTile, tokens = min(a.rows - token, kTile), stride = (tokens + W - 1) / W * W;
            const int64_t first = i % stripes * step;
            if (i == begin || first == 0) {
                for (int64_t t = 0; t < stride; t += W) {
                    for (int64_t k = 0; k < a.in; k += W) {
                        transpose(a.x + (token + t) * a.in + k, a.in, tokens - t, a.in - k, x + k * stride + t, stride, a.in - k, W);
                    }
                }
            }
            stripe<Row, T>(a, x, stride, token, tokens, first, min(first + step, chunks), sums);
        }
    });
}

}  // namespace

void nmg(const Nmg& a) {
    const bool bytes = a.count * a.g <= 256;
    if (a.bf16) return bytes ? run<uint8_t, uint16_t>(a) : run<uint16_t, uint16_t>(a);
    bytes ? run<uint8_t, float>(a) : run<uint16_t, float>(a);
}

}  // namespace sparseworks::SW_ISA
