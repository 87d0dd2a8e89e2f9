// 16-bit fixed point: an entry is two weights, and one instruction multiplies two inputs of a vector of tokens with them: twice
// the rate of float32. Inputs are rounded per token to +-limit, which pack time chose so that no sum leaves 32 bits.
#pragma once
#include "tiles.h"

namespace {

using sparseworks::kTiny;

struct Pair {
    int16_t first, second;
};

constexpr int64_t kTokens = W == 4 ? 32 : 64;  // the largest tile: eight vectors, or as many tokens

// To the nearest whole number, of two the even one.
SW_INLINE Ints rounded(Lanes v) {
#if defined(SW_ISA_AVX512)
    return reinterpret_cast<Ints>(_mm512_cvtps_epi32(v));
#elif SW_LANES == 8
    return reinterpret_cast<Ints>(_mm256_cvtps_epi32(v));
#elif SW_LANES == 4 && defined(__aarch64__)
    return reinterpret_cast<Ints>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(v)));
#elif SW_LANES == 4 && defined(__SSE2__)
    return reinterpret_cast<Ints>(_mm_cvtps_epi32(v));
#else
    Ints n;
    for (int i = 0; i < W; ++i) n[i] = static_cast<int32_t>(__builtin_nearbyintf(v[i]));
    return n;
#endif
}

// Products of two pairs of 16 bits and their sum, in each lane.
SW_INLINE Ints dot_pairs(Ints a, Ints b) {
#if SW_LANES == 8
    return reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif SW_LANES == 4 && defined(__aarch64__)
    const auto x = reinterpret_cast<int16x8_t>(a), y = reinterpret_cast<int16x8_t>(b);
    return reinterpret_cast<Ints>(vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
#elif SW_LANES == 4 && defined(__SSE2__)
    return reinterpret_cast<Ints>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

SW_INLINE Ints add_pairs(Ints a, Ints b, Ints sum) {
#if defined(SW_ISA_AVX512)
    const auto of = [](Ints v) { return reinterpret_cast<__m512i>(v); };
    return reinterpret_cast<Ints>(_mm512_dpwssd_epi32(of(sum), of(a), of(b)));
#endif
    sum = plus(sum, dot_pairs(a, b));
#if defined(__x86_64__) && !defined(SW_ISA_WIDE)
    __asm__("" : "+v"(sum));  // GCC would add products of two entries first, and run out of registers for them
#endif
    return sum;
}

// N entries, each in every lane of a vector: four in one read where that is faster.
template <int N>
SW_INLINE void broadcast(const Pair* p, Ints (&v)[N]) {
#if SW_LANES == 8
    if constexpr (N == 4) {
        const __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return each<4>([&](auto i) { v[i] = reinterpret_cast<Ints>(_mm256_shuffle_epi32(four, i * 0x55)); });
    }
#endif
    each<N>([&](auto i) {
        int32_t both;
        std::memcpy(&both, p + i, sizeof both);
        v[i] = both - Ints{};
    });
}

SW_INLINE Ints pair(Ints first, Ints second) { return (first & 0xFFFF) | second << 16; }
SW_INLINE Lanes absolute(Lanes v) { return floats(bits(v) & 0x7FFFFFFF); }

// Largest absolute value, or NaN if there is one.
static float largest(const float* x, int64_t n) {
    Lanes most = zero();
    Ints odd{};
    for (int64_t k = 0; k < n; k += W) {
        const Lanes v = load_first(x + k, n - k);
        most = greater(most, absolute(v));
        odd |= reinterpret_cast<Ints>(v != v);
    }
    bool any = false;
    for (int i = 0; i < W; ++i) any = any || odd[i];
    return any ? NAN : largest(most);
}

// What a level of a row is worth that is nowhere larger than `most`, and its inverse: NaN and zero if `most` is not finite.
struct Level {
    float scale, inverse;
    SW_INLINE Level(float most, float limit)
        : scale(most < INFINITY ? most / limit : NAN), inverse(most < INFINITY && most > kTiny ? limit / most : 0.0f) {}
};

struct Fixed {
    using Stored = Pair;
    using Cell = int32_t;
    using Vector = Ints;

    static constexpr bool kByBlock = false;  // scales are known once the whole of a token has been seen
    static constexpr int64_t kTile = kTokens;

    const float* row_scale;
    float limit;

    static SW_INLINE Ints multiply_add(Ints w, Ints x, Ints sum) { return add_pairs(w, x, sum); }
    static SW_INLINE Ints start(const float*, int64_t) { return Ints{}; }  // the bias is added to scaled sums

    // The whole tile at once: a token is scaled by its largest input.
    template <int T>
    Fetch pack(const Segments& a, int64_t kb, int64_t, int64_t token, int64_t tokens, int32_t* x, float* scales) const {
        for (int64_t t = 0; kb == 0 && t < T; t += W) {
            const int64_t there = tokens - t < W ? tokens - t : W;
            if (there > 0) round_tokens<T>(a.x + (token + t) * a.in, a.in, there, x + t, scales + t);
        }
        return {};
    }

    // W tokens, of which some may not exist -> cells [in / 2][T].
    template <int T>
    void round_tokens(const float* x, int64_t in, int64_t there, int32_t* cells, float* scales) const {
        float inverses[W] = {};
        for (int64_t t = 0; t < there; ++t) {
            const Level level(largest(x + t * in, in), limit);
            scales[t] = level.scale, inverses[t] = level.inverse;
        }
        const Lanes inverse = load(inverses);
        for (int64_t k = 0; k < in; k += W) {
            Lanes r[W];
            if (there == W && k + W <= in) each<W>([&](auto t) { r[t] = load(x + t * in + k); });
            else each<W>([&](auto t) { r[t] = t < there ? load_first(x + t * in + k, in - k) : zero(); });
            transpose(r);
            each<W / 2>([&](auto p) {
                if (k + 2 * p < in) store(cells + (k / 2 + p) * T, pair(rounded(r[2 * p] * inverse), rounded(r[2 * p + 1] * inverse)));
            });
        }
    }

    // y = sum * (token scale) * (row scale) + bias.
    template <int T>
    void unpack(const Segments& a, const int32_t* sums, int64_t first, int64_t height, int64_t token, int64_t tokens,
                const float* scales) const {
        for (int64_t n = 0; n < height; n += W) {
            const int64_t wide = height - n;
            const Lanes scale = load_first(row_scale + first + n, wide);
            const Lanes bias = a.bias ? load_first(a.bias + first + n, wide) : zero();
            for (int64_t t = 0; t < tokens; t += W) {
                Lanes r[W];
                each<W>([&](auto i) { r[i] = __builtin_convertvector(load(sums + (i < wide ? n + i : n) * T + t), Lanes); });
                transpose(r);
                each<W>([&](auto i) {
                    if (t + i >= tokens) return;
                    store_first(a.y + (token + t + i) * a.out + first + n, ::multiply_add(r[i] * scales[t + i], scale, bias), wide);
                });
            }
        }
    }
};

}  // namespace
