// Parts of attention: products of small matrices in register tiles, 2^x, and operands packed into panels of two vectors.
#pragma once
#include "../simd.h"
#include "attention.h"

namespace {

constexpr int64_t kPanel = 2 * W;
constexpr int64_t kRows = 6;  // 6 x 2 sums, two vectors of one operand and a broadcast of the other: 15 registers
constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

inline int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// 2^x for x <= 0; below -126.5 it is 0, NaN stays NaN.
SW_INLINE Lanes power_of_two(Lanes x) {
    const Lanes magic = all(12582912.0f + 127.0f);  // 1.5 * 2^23: the sum's low bits are the rounded x, plus the exponent's bias
    const Lanes kept = greater(all(-127.0f), x);
    const Lanes shifted = kept + magic, r = kept - (shifted - magic);
    Lanes p = all(1.33336e-3f);
    const float c[] = {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};
    each<5>([&](auto i) { p = multiply_add(p, r, all(c[i])); });
    return p * floats(bits(shifted) << 23);
}

SW_INLINE Lanes lane_numbers() {
    Lanes v = zero();
    for (int i = 0; i < W; ++i) v[i] = i;
    return v;
}

// Lanes below n from v, the others from `rest`.
SW_INLINE Lanes first_lanes(Lanes v, int64_t n, Lanes rest) { return lane_numbers() < all(static_cast<float>(n)) ? v : rest; }

SW_INLINE float peak(Lanes v) {
#if SW_LANES == 8
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#elif defined(SW_ISA_AVX512)
    return _mm512_reduce_max_ps(v);
#else
    return largest(v);
#endif
}

// body(std::integral_constant<int, rows>, first row)
template <class Body>
SW_INLINE void row_groups(int64_t rows, const Body& body) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) body(std::integral_constant<int, kRows>{}, r);
    switch (rows - r) {
        case 1: return body(std::integral_constant<int, 1>{}, r);
        case 2: return body(std::integral_constant<int, 2>{}, r);
        case 3: return body(std::integral_constant<int, 3>{}, r);
        case 4: return body(std::integral_constant<int, 4>{}, r);
        case 5: return body(std::integral_constant<int, 5>{}, r);
    }
}

struct Range {
    int64_t from, to;
};

// What a product's sums begin with.
enum class Start { zero, sum, scaled };

// The left operand: element (r, k) at data[r * row + k * step].
struct Left {
    const float* data;
    int64_t row, step;
};

// The right operand in panels of two vectors: [panel][k][2 W].
struct Panels {
    const float* data;
    int64_t stride, count;
};

// to[r][n] = start + sum over k of a[r][k] b[k][n]. `range(panel, first row, rows)` is the k that matter there; none: left alone.
template <Start S, class Ranges>
SW_INLINE void product(Left a, int64_t rows, Panels b, float* to, int64_t stride, const float* factors, const Ranges& range) {
    for (int64_t p = 0; p < b.count; ++p) {
        row_groups(rows, [&](auto height, int64_t r) {
            constexpr int R = decltype(height)::value;
            const Range k = range(p, r, R);
            if (k.from >= k.to) return;
            float* c = to + r * stride + p * kPanel;
            Lanes s[R][2];
            each<R>([&](auto i) {
                each<2>([&](auto j) {
                    if constexpr (S == Start::zero) s[i][j] = zero();
                    else s[i][j] = load(c + i * stride + j * W);
                    if constexpr (S == Start::scaled) s[i][j] *= all(factors[r + i]);
                });
            });
            const float* left = a.data + r * a.row + k.from * a.step;
            const float* right = b.data + p * b.stride + k.from * kPanel;
#pragma GCC unroll 2
            for (int64_t n = k.to - k.from; n > 0; --n) {
                const Lanes v0 = load(right), v1 = load(right + W);
                each<R>([&](auto i) {
                    const Lanes x = all(left[i * a.row]);
                    s[i][0] = multiply_add(x, v0, s[i][0]);
                    s[i][1] = multiply_add(x, v1, s[i][1]);
                });
                left += a.step, right += kPanel;
            }
            each<R>([&](auto i) { each<2>([&](auto j) { store(c + i * stride + j * W, s[i][j]); }); });
        });
    }
}

// Rows (n, d) into panels of columns, [panel of d][row][2 W]; columns that do not exist are zero.
inline void pack_rows(const float* from, int64_t stride, int64_t n, int64_t d, float* to) {
    for (int64_t c = 0; c < d; c += kPanel) {
        for (int64_t r = 0; r < n; ++r, to += kPanel) {
            store(to, load_first(from + r * stride + c, d - c));
            store(to + W, load_first(from + r * stride + c + W, d - c - W));
        }
    }
}

// Rows (n, d) into panels of rows, [panel of rows][d][2 W]; rows that do not exist are zero.
inline void pack_transposed(const float* from, int64_t stride, int64_t n, int64_t d, float* to) {
    for (int64_t r = 0; r < n; r += kPanel, to += d * kPanel) {
        for (int64_t half = 0; half < kPanel; half += W) {
            for (int64_t c = 0; c < d; c += W) {
                transpose(from + (r + half) * stride + c, stride, n - r - half, d - c, to + c * kPanel + half, kPanel, d - c, W);
            }
        }
    }
}

// One block of scores: `rows` queries from `query` on, `keys` keys from `key` on.
struct Score {
    int64_t query, rows, key, keys;
    bool causal;

    int64_t visible(int64_t row) const { return causal ? most(0, least(keys, query + row - key + 1)) : keys; }
    int64_t first_row(int64_t column) const { return causal ? most(0, key + column - query) : 0; }
    int64_t width() const { return up_to(keys, kPanel); }
};

// Scores of the visible keys: rows of q against panels of keys.
template <class Block>
SW_INLINE void scores(const Block& t, const float* q, int64_t stride, const float* k, int64_t d, float* to, int64_t width) {
    product<Start::zero>({q, stride, 1}, t.rows, {k, d * kPanel, t.width() / kPanel}, to, width, nullptr,
                         [&](int64_t p, int64_t r, int64_t n) { return Range{0, t.visible(r + n - 1) > p * kPanel ? d : 0}; });
}

using sparseworks::Blocks;
using sparseworks::Sizes;

// Sizes in blocks, and of what a head's keys and values take when packed.
struct Layout {
    int64_t query_blocks, key_blocks, width, depth;  // width of a block of scores, and d, both in whole panels

    Layout(const Sizes& n, const Blocks& b)
        : query_blocks((n.queries + b.tall - 1) / b.tall),
          key_blocks((n.keys + b.wide - 1) / b.wide),
          width(up_to(b.wide, kPanel)),
          depth(up_to(n.d, kPanel)) {}
};

// body(key block) for each that query block `block` of `head` attends to.
template <class Body>
SW_INLINE void kept_blocks(const Blocks& b, const Layout& l, int64_t head, int64_t block, const Body& body) {
    if (!b.ptr) {
        for (int64_t j = 0; j < l.key_blocks; ++j) body(j);
        return;
    }
    const int64_t row = (b.heads == 1 ? 0 : head) * l.query_blocks + block;
    for (int32_t e = b.ptr[row]; e < b.ptr[row + 1]; ++e) body(b.columns[e]);
}

// The query blocks of a head that part `me` of `parts` takes: equally many kept blocks each.
inline Range query_share(const Blocks& b, const Layout& l, int64_t head, int64_t me, int64_t parts) {
    const int32_t* ptr = b.ptr ? b.ptr + (b.heads == 1 ? 0 : head) * l.query_blocks : nullptr;
    return {sparseworks::balanced(ptr, l.query_blocks, me, parts), sparseworks::balanced(ptr, l.query_blocks, me + 1, parts)};
}

}  // namespace
