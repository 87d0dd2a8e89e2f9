// Adjacent outputs share columns. Panels at least as high as a vector: lanes are outputs, times as many tokens as registers
// allow, token-major in and out, x is broadcast. Lower ones: lanes are tokens, four outputs times a few vectors of a
// feature-major tile; few rows of x: several entries fill a vector.
#include "../simd.h"
#include "linear.h"
#include "tiles.h"

namespace sparseworks::SW_ISA {
namespace {

SW_INLINE constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

SW_INLINE int64_t panels_of(const Panel& a) { return (a.out + a.height - 1) / a.height; }
SW_INLINE int64_t k_blocks_of(const Panel& a) { return (a.in + a.k_block - 1) / a.k_block; }
SW_INLINE int64_t work_of(const Panel& a) { return a.rows * a.height * a.ptr[panels_of(a) * k_blocks_of(a)]; }

// y[0:n] = v (times scale) + what was there before, or + bias where nothing was.
SW_INLINE void finish(Lanes v, const float* scale, const float* bias, bool first, float* y, int64_t n) {
    if (n <= 0) return;
    const float* before = first ? bias : y;
    if (scale) v = v * load_first(scale, n);
    store_first(y, before ? v + load_first(before, n) : v, n);
}

constexpr int64_t kBytesAhead = 2048;  // of weights, fetched ahead for few tokens; beyond the end a prefetch does nothing

// T tokens times a panel of VW outputs: the entries of one K-block.
template <int V, int T, class Value>
SW_INLINE void outputs(const float* x, int64_t stride, const uint16_t* columns, const Value* values, int64_t n, const float* scale,
                       const float* bias, bool first, float* y, int64_t out, int64_t width) {
    constexpr int C = T * V <= 2 ? 4 : T * V <= 4 ? 2 : 1;  // chains
    Lanes sum[C][T][V];
    each<C>([&](auto c) { each<T>([&](auto t) { each<V>([&](auto v) { sum[c][t][v] = zero(); }); }); });
    int64_t i = 0;
    constexpr int kBytes = W * V * sizeof(Value);  // of one entry
    const auto add = [&](auto c, int64_t entry) {
        Lanes w[V];
        each<V>([&](auto v) { w[v] = load(values + (entry * V + v) * W); });
        const float* column = x + columns[entry];
        each<T>([&](auto t) {
            const Lanes lane = all(column[t * stride]);
            each<V>([&](auto v) { sum[c][t][v] = multiply_add(lane, w[v], sum[c][t][v]); });
        });
    };
    for (; i + C <= n; i += C) {
        if constexpr (C > 1) {
            const char* next = reinterpret_cast<const char*>(values) + i * kBytes + kBytesAhead;
            each<(C * kBytes + 63) / 64>([&](auto l) { __builtin_prefetch(next + 64 * l); });
        }
        each<C>([&](auto c) { add(c, i + c); });
    }
    for (; C > 1 && i < n; ++i) add(std::integral_constant<int, 0>{}, i);
    each<T>([&](auto t) {
        each<V>([&](auto v) {
            each<C - 1>([&](auto c) { sum[0][t][v] += sum[c + 1][t][v]; });
            finish(sum[0][t][v], scale ? scale + W * v : nullptr, bias ? bias + W * v : nullptr, first, y + t * out + W * v,
                   width - W * v);
        });
    });
}

// Weights of a group of panels stay in L2 while all tokens pass, the tokens of a step stay in L1 while the group passes.
constexpr int64_t kGroupBytes = 192 << 10;

template <int V, class Value>
void token_major(const Panel& a) {
    constexpr int kTokens = V == 1 ? 12 : V == 2 ? 6 : kRegisters > 16 ? 3 : 2, kSome = kTokens < 6 ? kTokens : 6;  // of a step
    using Step = void (*)(const float*, int64_t, const uint16_t*, const Value*, int64_t, const float*, const float*, bool, float*,
                          int64_t, int64_t);
    static constexpr Step kSteps[] = {
        outputs<V, 1, Value>,
        outputs<V, 2, Value>,
        outputs<V, min(kSome, 3), Value>,
        outputs<V, min(kSome, 4), Value>,
        outputs<V, min(kSome, 5), Value>,
        outputs<V, kSome, Value>,
        outputs<V, kTokens, Value>,
    };
    constexpr int64_t height = V * W;
    const Value* values = static_cast<const Value*>(a.values);
    const int64_t panels = panels_of(a), k_blocks = k_blocks_of(a);
    const auto range = [&](int64_t token, int64_t last_token, int64_t from, int64_t to) {
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            const int32_t* ptr = a.ptr + kb * panels;
            for (int64_t p = from; p < to;) {
                int64_t group = p + 1;
                const int64_t room = kGroupBytes / (height * static_cast<int64_t>(sizeof(Value)));
                while (group < to && ptr[group + 1] - ptr[p] <= room) ++group;
                for (int64_t t = token; t < last_token;) {
                    const int64_t left = last_token - t, step = left >= kTokens ? kTokens : min(left, kSome);
                    const Step run = kSteps[step > 6 ? 6 : step - 1];
                    for (int64_t q = p; q < group; ++q) {
                        const int64_t e = ptr[q], n = q * height;
                        run(a.x + t * a.in, a.in, a.columns + e, values + e * height, ptr[q + 1] - e, a.scale ? a.scale + n : nullptr,
                            a.bias ? a.bias + n : nullptr, kb == 0, a.y + t * a.out + n, a.out, a.out - n);
                    }
                    t += step;
                }
                p = group;
            }
        }
    };
    if (a.rows >= 2 * kTokens * a.threads) {
        const int64_t steps = (a.rows + kTokens - 1) / kTokens;
        split(steps, a.threads, work_of(a), [&](int64_t begin, int64_t end) {
            range(begin * kTokens, min(end * kTokens, a.rows), 0, panels);
        });
    } else {
        split(panels, a.threads, work_of(a), [&](int64_t begin, int64_t end) { range(0, a.rows, begin, end); });
    }
}

// Four outputs of a panel times VW tokens of a feature-major tile.
template <int V, class Value>
SW_INLINE void four(const float* x, const uint16_t* columns, int64_t base, const Value* values, int64_t height, int64_t n,
                    float* sums) {
    constexpr int T = V * W;
    Lanes sum[4][V];
    each<4>([&](auto r) { each<V>([&](auto v) { sum[r][v] = load(sums + r * T + W * v); }); });
    for (int64_t i = 0; i < n; ++i) {
        const float* lane = x + (columns[i] - base) * T;
        Lanes tokens[V];
        each<V>([&](auto v) { tokens[v] = load(lane + W * v); });
        each<4>([&](auto r) {
            const Lanes w = all(::widen(values[i * height + r]));
            each<V>([&](auto v) { sum[r][v] = multiply_add(w, tokens[v], sum[r][v]); });
        });
    }
    each<4>([&](auto r) { each<V>([&](auto v) { store(sums + r * T + W * v, sum[r][v]); }); });
}

constexpr int64_t kRows = 256;                                                    // outputs whose sums are kept in L2
constexpr int kVectors = W == 8 ? 3 : W == 4 && kRegisters > 16 ? 4 : 2;  // of tokens

template <int V, class Value>
void token_lanes(const Panel& a, int64_t token, int64_t first, int64_t rows, bool repack, float* x, float* sums) {
    constexpr int T = V * W;
    const Value* values = static_cast<const Value*>(a.values);
    const int64_t tokens = min(a.rows - token, T), h = a.height;
    if (repack) pack_tokens<T>(a.x + token * a.in, a.in, a.in, tokens, x);
    for (int64_t r = 0; r < (rows + h - 1) / h * h; ++r) {
        const Lanes start = all(!a.scale && a.bias && first + r < a.out ? a.bias[first + r] : 0.0f);
        each<V>([&](auto v) { store(sums + r * T + W * v, start); });
    }
    for (int64_t kb = 0; kb < k_blocks_of(a); ++kb) {
        const int64_t base = kb * a.k_block;
        for (int64_t r = 0; r < rows; r += h) {
            const int32_t* ptr = a.ptr + kb * panels_of(a) + (first + r) / h;
            for (int64_t q = 0; q < h; q += 4) {
                four<V>(x + base * T, a.columns + ptr[0], base, values + ptr[0] * h + q, h, ptr[1] - ptr[0], sums + (r + q) * T);
            }
        }
    }
    for (int64_t r = 0; a.scale && r < rows; ++r) {
        const Lanes scale = all(a.scale[first + r]), bias = all(a.bias ? a.bias[first + r] : 0.0f);
        each<V>([&](auto v) {
            float* at = sums + r * T + W * v;
            store(at, multiply_add(load(at), scale, bias));
        });
    }
    unpack_tokens<T>(sums, rows, tokens, a.y + token * a.out + first, a.out);
}

// `token_lanes` of the fewest vectors that hold the tokens, at most V.
template <int V, class Value>
auto fewest(int64_t tokens) {
    if constexpr (V > 1) {
        if (tokens <= (V - 1) * W) return fewest<V - 1, Value>(tokens);
    }
    return token_lanes<V, Value>;
}

template <class Value>
void feature_major(const Panel& a) {
    constexpr int64_t kTokens = kVectors * W;
    const int64_t tiles = (a.rows + kTokens - 1) / kTokens, parts = min(a.threads, tiles) > 1 ? 1 : a.threads;
    const int64_t per = ((a.out + parts - 1) / parts + 15) / 16 * 16, rows = min(per, kRows), blocks = (a.out + rows - 1) / rows;
    split(tiles * blocks, a.threads, work_of(a), [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* x = scratch.floats((a.in + kRows) * kTokens);
        float* sums = x + a.in * kTokens;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t token = i / blocks * kTokens, first = i % blocks * rows;
            fewest<kVectors, Value>(a.rows - token)(a, token, first, min(a.out - first, rows), i == begin || first == 0, x, sums);
        }
    });
}

// Panels lower than a vector with few rows of x: entries of several columns side by side.
template <int H, class Value>
void several_columns(const Panel& a) {
    constexpr int kColumns = W / H, kChains = 4;
    const Value* values = static_cast<const Value*>(a.values);
    const int64_t panels = panels_of(a), k_blocks = k_blocks_of(a);
    split(panels, a.threads, work_of(a), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t m = 0; m < a.rows; ++m) {
                const float* x = a.x + m * a.in;
                Lanes sum[kChains];
                each<kChains>([&](auto c) { sum[c] = zero(); });
                float total[W] = {};
                for (int64_t kb = 0; kb < k_blocks; ++kb) {
                    int64_t e = a.ptr[kb * panels + p];
                    const int64_t last = a.ptr[kb * panels + p + 1];
                    for (; e + kChains * kColumns <= last; e += kChains * kColumns) {
                        each<kChains>([&](auto c) {
                            const int64_t first = e + c * kColumns;
                            Quad part[W / 4];
                            each<W / 4>([&](auto i) { part[i] = x[a.columns[first + i * 4 / H]] - Quad{}; });
                            sum[c] = multiply_add(join(part), load(values + first * H), sum[c]);
                        });
                    }
                    for (; e < last; ++e) {
                        for (int r = 0; r < H; ++r) total[r] += x[a.columns[e]] * ::widen(values[e * H + r]);
                    }
                }
                store(total, load(total) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
                for (int64_t n = H * p; n < min(H * p + H, a.out); ++n) {
                    float all_columns = 0.0f;
                    for (int c = 0; c < kColumns; ++c) all_columns += total[c * H + n - H * p];
                    a.y[m * a.out + n] = all_columns * (a.scale ? a.scale[n] : 1.0f) + (a.bias ? a.bias[n] : 0.0f);
                }
            }
        }
    });
}

template <int H, class Value>
void by_outputs(const Panel& a) {
    if constexpr (H >= W) token_major<H / W, Value>(a);
    else several_columns<H, Value>(a);
}

template <class Value>
void run(const Panel& a) {
    if (a.height == 16) return by_outputs<16, Value>(a);
    if (a.rows > 3) return feature_major<Value>(a);
    a.height == 8 ? by_outputs<8, Value>(a) : by_outputs<4, Value>(a);
}

}  // namespace

void panel(const Panel& a) { a.scale ? run<int8_t>(a) : a.bf16 ? run<uint16_t>(a) : run<float>(a); }

}  // namespace sparseworks::SW_ISA
