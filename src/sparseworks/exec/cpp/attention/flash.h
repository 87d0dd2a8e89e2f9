// Softmax over keys that come a block of scores at a time (Dao 2023, arXiv 2307.08691), for a block of queries: what it carries, and one
// step of it. A block of scores says how many `rows` and `keys` it has and how many keys each row sees: the first visible(row), which do
// not fall from row to row.
#pragma once
#include <limits>

#include "tiles.h"

namespace {

constexpr float kNever = -1e30f;  // below every score, but finite: differences stay numbers
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// What a query block carries from key block to key block; scores in units of log 2.
struct Running {
    float *most, *sum, *factor;  // of each row
    float* q;                    // scaled
    float* scores;
    float* out;
    int64_t depth, width;  // of a row of q and out, of a row of scores
    static int64_t floats(int64_t tall, int64_t depth, int64_t width) {
        return up_to(up_to(tall, W) * 3 + tall * (2 * depth + width), 16);
    }
    Running(float* at, int64_t tall, int64_t depth, int64_t width) : most(at), depth(depth), width(width) {
        const int64_t rows = up_to(tall, W);
        sum = most + rows, factor = sum + rows, q = factor + rows;
        scores = q + tall * depth, out = scores + tall * width;
    }
};

// Scores to weights 2^(score - largest); `factor` is what earlier sums and outputs must be multiplied with.
template <class Block>
SW_INLINE void soften(const Block& t, const Running& w) {
    for (int64_t r = 0; r < t.rows; ++r) {
        float* s = w.scores + r * w.width;
        const int64_t n = t.visible(r), end = least(t.width(), up_to(t.visible(least(r + kRows, t.rows) - 1), W));
        Lanes high = all(w.most[r]);
        int64_t j = 0;
        for (; j + W <= n; j += W) high = greater(load(s + j), high);
        for (; j < end; j += W) {
            const Lanes v = first_lanes(load(s + j), n - j, all(kHidden));
            store(s + j, v);
            high = greater(v, high);
        }
        const float now = peak(high);
        w.factor[r] = w.most[r] - now;
        w.most[r] = now;
    }
    for (int64_t r = 0; r < t.rows; r += W) store(w.factor + r, power_of_two(load(w.factor + r)));
    for (int64_t r = 0; r < t.rows; ++r) {
        float* s = w.scores + r * w.width;
        const int64_t end = least(t.width(), up_to(t.visible(least(r + kRows, t.rows) - 1), W));
        const Lanes high = all(w.most[r]);
        Lanes total = zero();
        for (int64_t j = 0; j < end; j += W) {
            const Lanes p = power_of_two(load(s + j) - high);
            store(s + j, p);
            total += p;
        }
        w.sum[r] = w.sum[r] * w.factor[r] + sum(total);
    }
}

inline void begin(const Running& w, const float* q, int64_t stride, int64_t rows, int64_t d, float factor) {
    const Lanes scale = all(factor * kLog2E);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < d; c += W) {
            store(w.q + r * w.depth + c, load_first(q + r * stride + c, d - c) * scale);
        }
    }
    std::memset(w.out, 0, rows * w.depth * sizeof(float));
    for (int64_t r = 0; r < up_to(rows, W); ++r) w.most[r] = kNever, w.sum[r] = 0.0f, w.factor[r] = 0.0f;
}

// Keys as `pack_transposed` makes them, values as `pack_rows` does.
template <class Block>
SW_INLINE void attend_block(const Block& t, const Running& w, const float* keys, const float* values, int64_t d) {
    scores(t, w.q, w.depth, keys, d, w.scores, w.width);
    soften(t, w);
    product<Start::scaled>({w.scores, w.width, 1}, t.rows, {values, t.keys * kPanel, w.depth / kPanel}, w.out, w.depth, w.factor,
                           [&](int64_t, int64_t r, int64_t rows) { return Range{0, t.visible(r + rows - 1)}; });
}

inline void finish(const Running& w, float* out, int64_t stride, float* lse, int64_t rows, int64_t d) {
    for (int64_t r = 0; r < rows; ++r) {
        const bool none = w.sum[r] == 0.0f;
        const Lanes share = all(none ? 0.0f : 1.0f / w.sum[r]);
        for (int64_t c = 0; c < d; c += W) {
            store_first(out + r * stride + c, load(w.out + r * w.depth + c) * share, d - c);
        }
        lse[r] = none ? kHidden : w.most[r] * kLn2 + std::log(w.sum[r]);
    }
}

}  // namespace
