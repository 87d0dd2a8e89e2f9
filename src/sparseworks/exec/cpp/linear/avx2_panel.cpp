// Adjacent outputs share columns. Panels of 16: two vectors of outputs times six tokens, token-major in and out, x is
// broadcast. Panels of 8 and 4: lanes are tokens, four outputs times three vectors of a feature-major tile. Few rows of x:
// lanes are outputs.
#include "../avx2.h"
#include "linear.h"

namespace sparseworks::avx2 {
namespace {

SW_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// y[0:n] = v (times scale) + what was there before, or + bias where nothing was.
SW_INLINE void finish(__m256 v, const float* scale, const float* bias, bool first, float* y, int64_t n) {
    const float* before = first ? bias : y;
    if (scale && n > 0) v = _mm256_mul_ps(v, n >= 8 ? _mm256_loadu_ps(scale) : _mm256_maskload_ps(scale, first_lanes(n)));
    if (n >= 8) {
        _mm256_storeu_ps(y, before ? _mm256_add_ps(v, _mm256_loadu_ps(before)) : v);
    } else if (n > 0) {
        const __m256i there = first_lanes(n);
        _mm256_maskstore_ps(y, there, before ? _mm256_add_ps(v, _mm256_maskload_ps(before, there)) : v);
    }
}

constexpr int64_t kAhead = 2048;  // bytes of weights fetched ahead for few tokens; beyond the end a prefetch does nothing

// T tokens times a panel of 8V outputs: the entries of one K-block.
template <int V, int T, class Value>
SW_INLINE void outputs(const float* x, int64_t stride, const uint16_t* columns, const typename Value::Type* values,
                       int64_t n, const float* scale, const float* bias, bool first, float* y, int64_t out, int64_t width) {
    constexpr int C = T * V <= 2 ? 4 : T * V <= 4 ? 2 : 1;  // chains
    __m256 sum[C][T][V];
    each<C>([&](auto c) { each<T>([&](auto t) { each<V>([&](auto v) { sum[c][t][v] = _mm256_setzero_ps(); }); }); });
    int64_t i = 0;
    constexpr int kBytes = 8 * V * sizeof(typename Value::Type);  // of one entry
    for (; i + C <= n; i += C) {
        if constexpr (C > 1) {
            const char* next = reinterpret_cast<const char*>(values) + i * kBytes + kAhead;
            each<(C * kBytes + 63) / 64>([&](auto l) { _mm_prefetch(next + 64 * l, _MM_HINT_T0); });
        }
        each<C>([&](auto c) {
            __m256 w[V];
            each<V>([&](auto v) { w[v] = Value::load8(values + ((i + c) * V + v) * 8); });
            const float* column = x + columns[i + c];
            each<T>([&](auto t) {
                const __m256 lane = _mm256_broadcast_ss(column + t * stride);
                each<V>([&](auto v) { sum[c][t][v] = _mm256_fmadd_ps(lane, w[v], sum[c][t][v]); });
            });
        });
    }
    for (; C > 1 && i < n; ++i) {
        each<V>([&](auto v) {
            const __m256 w = Value::load8(values + (i * V + v) * 8);
            each<T>([&](auto t) {
                sum[0][t][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(x + columns[i] + t * stride), w, sum[0][t][v]);
            });
        });
    }
    each<T>([&](auto t) {
        each<V>([&](auto v) {
            each<C - 1>([&](auto c) { sum[0][t][v] = _mm256_add_ps(sum[0][t][v], sum[c + 1][t][v]); });
            finish(sum[0][t][v], scale ? scale + 8 * v : nullptr, bias ? bias + 8 * v : nullptr, first, y + t * out + 8 * v, width - 8 * v);
        });
    });
}

// Weights of a group of panels stay in L2 while all tokens pass, six tokens of x stay in L1 while the group passes.
constexpr int64_t kGroupBytes = 192 << 10;

template <int V, class Value>
void token_major(const Panel& a) {
    constexpr int kTokens = V == 2 ? 6 : 12;
    using Step = void (*)(const float*, int64_t, const uint16_t*, const typename Value::Type*, int64_t, const float*, const float*, bool,
                          float*, int64_t, int64_t);
    static constexpr Step kSteps[] = {
        outputs<V, 1, Value>, outputs<V, 2, Value>, outputs<V, 3, Value>, outputs<V, 4, Value>,
        outputs<V, 5, Value>, outputs<V, 6, Value>, outputs<V, 12, Value>,
    };
    const auto* values = static_cast<const typename Value::Type*>(a.values);
    const int64_t panels = (a.out + 8 * V - 1) / (8 * V), k_blocks = (a.in + a.k_block - 1) / a.k_block;
    const auto range = [&](int64_t token, int64_t last_token, int64_t from, int64_t to) {
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            const int32_t* ptr = a.ptr + kb * panels;
            for (int64_t p = from; p < to;) {
                int64_t group = p + 1;
                const int64_t room = kGroupBytes / (8 * V * static_cast<int64_t>(sizeof(typename Value::Type)));
                while (group < to && ptr[group + 1] - ptr[p] <= room) ++group;
                for (int64_t t = token; t < last_token;) {
                    const int64_t left = last_token - t, step = left >= kTokens ? kTokens : left >= 6 ? 6 : left;
                    const Step run = kSteps[step == 12 ? 6 : step - 1];
                    for (int64_t q = p; q < group; ++q) {
                        const int64_t e = ptr[q];
                        run(a.x + t * a.in, a.in, a.columns + e, values + e * 8 * V, ptr[q + 1] - e,
                            a.scale ? a.scale + q * 8 * V : nullptr, a.bias ? a.bias + q * 8 * V : nullptr, kb == 0, a.y + t * a.out + q * 8 * V, a.out,
                            a.out - q * 8 * V);
                    }
                    t += step;
                }
                p = group;
            }
        }
    };
    const int64_t work = a.rows * 8 * V * a.ptr[panels * k_blocks];
    if (a.rows >= 2 * kTokens * a.threads) {
        const int64_t steps = (a.rows + kTokens - 1) / kTokens;
        split(steps, a.threads, work, [&](int64_t begin, int64_t end) {
            range(begin * kTokens, min(end * kTokens, a.rows), 0, panels);
        });
    } else {
        split(panels, a.threads, work, [&](int64_t begin, int64_t end) { range(0, a.rows, begin, end); });
    }
}

// Four outputs of a panel times 8V tokens of a feature-major tile.
template <int V, class Value>
SW_INLINE void four(const float* x, const uint16_t* columns, int64_t base, const typename Value::Type* values,
                    int64_t height, int64_t n, float* sums) {
    constexpr int T = 8 * V;
    __m256 sum[4][V];
    each<4>([&](auto r) { each<V>([&](auto v) { sum[r][v] = _mm256_load_ps(sums + r * T + 8 * v); }); });
    for (int64_t i = 0; i < n; ++i) {
        const float* lane = x + (columns[i] - base) * T;
        __m256 tokens[V];
        each<V>([&](auto v) { tokens[v] = _mm256_load_ps(lane + 8 * v); });
        each<4>([&](auto r) {
            const __m256 w = Value::broadcast(values + i * height + r);
            each<V>([&](auto v) { sum[r][v] = _mm256_fmadd_ps(w, tokens[v], sum[r][v]); });
        });
    }
    each<4>([&](auto r) { each<V>([&](auto v) { _mm256_store_ps(sums + r * T + 8 * v, sum[r][v]); }); });
}

constexpr int64_t kRows = 256;  // outputs whose sums are kept in L2

template <int V, class Value>
void token_lanes(const Panel& a, int64_t token, int64_t first, int64_t rows, bool repack, float* x, float* sums) {
    constexpr int T = 8 * V;
    const auto* values = static_cast<const typename Value::Type*>(a.values);
    const int64_t tokens = min(a.rows - token, T), h = a.height;
    const int64_t panels = (a.out + h - 1) / h, k_blocks = (a.in + a.k_block - 1) / a.k_block;
    if (repack) pack_tokens<T>(a.x + token * a.in, a.in, a.in, tokens, x);
    for (int64_t r = 0; r < (rows + h - 1) / h * h; ++r) {
        const float start = !a.scale && a.bias && first + r < a.out ? a.bias[first + r] : 0.0f;
        each<V>([&](auto v) { _mm256_store_ps(sums + r * T + 8 * v, _mm256_set1_ps(start)); });
    }
    for (int64_t kb = 0; kb < k_blocks; ++kb) {
        const int64_t base = kb * a.k_block;
        for (int64_t r = 0; r < rows; r += h) {
            const int32_t* ptr = a.ptr + kb * panels + (first + r) / h;
            for (int64_t q = 0; q < h; q += 4) {
                four<V, Value>(x + base * T, a.columns + ptr[0], base, values + ptr[0] * h + q, h, ptr[1] - ptr[0],
                               sums + (r + q) * T);
            }
        }
    }
    for (int64_t r = 0; a.scale && r < rows; ++r) {
        const __m256 scale = _mm256_set1_ps(a.scale[first + r]), bias = _mm256_set1_ps(a.bias ? a.bias[first + r] : 0.0f);
        each<V>([&](auto v) {
            float* at = sums + r * T + 8 * v;
            _mm256_store_ps(at, _mm256_fmadd_ps(_mm256_load_ps(at), scale, bias));
        });
    }
    unpack_tokens<T>(sums, rows, tokens, a.y + token * a.out + first, a.out);
}

template <class Value>
void feature_major(const Panel& a) {
    constexpr int64_t kTokens = 24;
    const int64_t tiles = (a.rows + kTokens - 1) / kTokens, parts = min(a.threads, tiles) > 1 ? 1 : a.threads;
    const int64_t per = ((a.out + parts - 1) / parts + 15) / 16 * 16, rows = min(per, kRows), blocks = (a.out + rows - 1) / rows;
    split(tiles * blocks, a.threads, a.rows * a.height * a.ptr[(a.out + a.height - 1) / a.height * ((a.in + a.k_block - 1) / a.k_block)],
          [&](int64_t begin, int64_t end) {
              static thread_local Scratch scratch;
              float* x = scratch.floats((a.in + kRows) * kTokens);
              float* sums = x + a.in * kTokens;
              for (int64_t i = begin; i < end; ++i) {
                  const int64_t token = i / blocks * kTokens, first = i % blocks * rows, left = a.rows - token;
                  const auto run = left > 16 ? token_lanes<3, Value> : left > 8 ? token_lanes<2, Value> : token_lanes<1, Value>;
                  run(a, token, first, min(a.out - first, rows), i == begin || first == 0, x, sums);
              }
          });
}

// Panels of four with few rows of x: two entries fill a vector.
template <class Value>
void four_outputs(const Panel& a) {
    const auto* values = static_cast<const typename Value::Type*>(a.values);
    const int64_t panels = (a.out + 3) / 4, k_blocks = (a.in + a.k_block - 1) / a.k_block;
    split(panels, a.threads, a.rows * 4 * a.ptr[panels * k_blocks], [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t m = 0; m < a.rows; ++m) {
                const float* x = a.x + m * a.in;
                __m256 sum[4];
                each<4>([&](auto c) { sum[c] = _mm256_setzero_ps(); });
                alignas(16) float rest[4] = {0, 0, 0, 0};
                for (int64_t kb = 0; kb < k_blocks; ++kb) {
                    int64_t e = a.ptr[kb * panels + p];
                    const int64_t last = a.ptr[kb * panels + p + 1];
                    for (; e + 8 <= last; e += 8) {
                        each<4>([&](auto c) {
                            const __m256 lane = _mm256_set_m128(_mm_broadcast_ss(x + a.columns[e + 2 * c + 1]),
                                                                _mm_broadcast_ss(x + a.columns[e + 2 * c]));
                            sum[c] = _mm256_fmadd_ps(lane, Value::load8(values + (e + 2 * c) * 4), sum[c]);
                        });
                    }
                    for (; e < last; ++e) {
                        for (int r = 0; r < 4; ++r) rest[r] += x[a.columns[e]] * _mm256_cvtss_f32(Value::broadcast(values + e * 4 + r));
                    }
                }
                const __m256 all = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
                alignas(16) float total[4];
                _mm_store_ps(total, _mm_add_ps(_mm_load_ps(rest), _mm_add_ps(_mm256_castps256_ps128(all),
                                                                             _mm256_extractf128_ps(all, 1))));
                for (int64_t n = 4 * p; n < min(4 * p + 4, a.out); ++n) {
                    a.y[m * a.out + n] = total[n - 4 * p] * (a.scale ? a.scale[n] : 1.0f) + (a.bias ? a.bias[n] : 0.0f);
                }
            }
        }
    });
}

template <class Value>
void run(const Panel& a) {
    if (a.height == 16) return token_major<2, Value>(a);
    if (a.rows > 3) return feature_major<Value>(a);
    if (a.height == 8) return token_major<1, Value>(a);
    four_outputs<Value>(a);
}

}  // namespace

void panel(const Panel& a) { a.scale ? run<I8>(a) : a.bf16 ? run<BF16>(a) : run<F32>(a); }

}  // namespace sparseworks::avx2
