// Dense int8 weights and many rows of x in 16-bit fixed point: products of 16 bits cannot saturate here, unlike those of 8, and the
// rounding of x does not show beside that of the weights. Products of 8 bits need fewer instructions; torch's, which round x to 8,
// are faster.
//
// A block of x rounded to 16 bits stays in L2; a panel of weights is widened into L1 once for all its rows. Sums are whole numbers
// and wait in y between blocks of inputs.
#include "fixed.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kInputs = 1024, kRows = 128, kPanel = 8;  // 256 KiB of x, 16 KiB of weights
constexpr int kOutputs = 4, kTall = kRegisters / 8;         // of a register tile, which is half of the registers
constexpr int kPairs = 2 * W;                               // numbers of 16 bits in a vector

using Shorts = int16_t __attribute__((vector_size(4 * W)));
typedef int8_t ShortBytes __attribute__((vector_size(2 * W), aligned(1), may_alias));

SW_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SW_INLINE int64_t padded(int64_t n) { return (n + kPairs - 1) / kPairs * kPairs; }
// Rows start a vector later each, so that their distances are no powers of two.
SW_INLINE int64_t stride(int64_t inputs) { return padded(inputs) + kPairs; }

SW_INLINE Ints vector(const int16_t* p) { return load(reinterpret_cast<const int32_t*>(p)); }
SW_INLINE void put(int16_t* p, Ints v) { store(reinterpret_cast<int32_t*>(p), v); }

// The kPairs numbers of 8 bits at p in 16.
SW_INLINE Ints widened(const int8_t* p) {
#if SW_LANES == 8
    return reinterpret_cast<Ints>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(SW_ISA_AVX512)
    return reinterpret_cast<Ints>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
    return reinterpret_cast<Ints>(__builtin_convertvector(*reinterpret_cast<const ShortBytes*>(p), Shorts));
#endif
}

// One block of inputs: where it starts, how many there are, and whether sums begin or end with it.
struct Block {
    int64_t start, width;
    bool first, last;
};

// Inputs of a row in 16 bits, beyond the end zeros.
void round_row(const float* x, int64_t n, float inverse, int16_t* to) {
    using Narrow = int16_t __attribute__((vector_size(2 * W)));
    for (int64_t k = 0; k < padded(n); k += W) {
        const Ints v = k < n ? rounded(load_first(x + k, n - k) * inverse) : Ints{};
        const Narrow narrow = __builtin_convertvector(v, Narrow);
        std::memcpy(to + k, &narrow, sizeof narrow);
    }
}

// x -> [block of inputs][row][padded inputs of the block], and what a level of each row is worth (NaN if it is not finite).
void round_rows(const Int8& a, int64_t begin, int64_t end, int16_t* cells, float* scales) {
    for (int64_t m = begin; m < end; ++m) {
        const float* x = a.x + m * a.in;
        const Level level(largest(x, a.in), static_cast<float>(a.limit));
        scales[m] = level.scale;
        for (int64_t k = 0; k < a.in; k += kInputs) {
            const int64_t width = least(kInputs, a.in - k);
            int16_t* to = cells + k / kInputs * stride(kInputs) * a.rows + m * stride(width);
            if (level.inverse > 0.0f) round_row(x + k, width, level.inverse, to);
            else std::memset(to, 0, padded(width) * sizeof *to);
        }
    }
}

// One row of weights widened to 16 bits; the same part of a later row is fetched meanwhile.
void widen_row(const int8_t* w, int64_t n, const int8_t* ahead, int16_t* to) {
    int64_t k = 0;
    for (; k + 64 <= n; k += 64) {
        __builtin_prefetch(ahead + k);
        each<64 / kPairs>([&](auto i) { put(to + k + kPairs * i, widened(w + k + kPairs * i)); });
    }
    for (; k < padded(n); ++k) to[k] = k < n ? w[k] : 0;
}

// The sums of four vectors.
SW_INLINE QuadInts sums_of(const Ints (&v)[4]) {
#if SW_LANES == 8
    const auto of = [&](int i) { return reinterpret_cast<__m256i>(v[i]); };
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(of(0), of(1)), _mm256_hadd_epi32(of(2), of(3)));
    return reinterpret_cast<QuadInts>(_mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
#elif defined(SW_ISA_AVX512)
    const auto half = [&](int i) {
        const auto whole = reinterpret_cast<__m512i>(v[i]);
        return _mm256_add_epi32(_mm512_castsi512_si256(whole), _mm512_extracti64x4_epi64(whole, 1));
    };
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(half(0), half(1)), _mm256_hadd_epi32(half(2), half(3)));
    return reinterpret_cast<QuadInts>(_mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
#else
    QuadInts sums{};
    each<4>([&](auto i) {
        int32_t lanes[W], sum = 0;
        store(lanes, v[i]);
        each<W>([&](auto j) { sum += lanes[j]; });
        sums[static_cast<int>(i)] = sum;
    });
    return sums;
#endif
}

// R rows of x times kOutputs rows of weights: sums[r] are the outputs of row r.
template <int R>
SW_INLINE void multiply(const int16_t* x, const int16_t* w, int64_t width, QuadInts (&sums)[R]) {
    const int64_t apart = stride(width);
    Ints sum[R][kOutputs];
    each<R>([&](auto r) { each<kOutputs>([&](auto n) { sum[r][n] = Ints{}; }); });
#pragma GCC unroll 2
    for (int64_t k = 0; k < width; k += kPairs) {
        Ints lanes[R];
        each<R>([&](auto r) { lanes[r] = vector(x + r * apart + k); });
        each<kOutputs>([&](auto n) {
            const Ints weights = vector(w + n * apart + k);
            each<R>([&](auto r) { sum[r][n] = add_pairs(weights, lanes[r], sum[r][n]); });
        });
    }
    each<R>([&](auto r) { sums[r] = sums_of(sum[r]); });
}

// Sums of `there` outputs of one row: added to those of the blocks before, and after the last one scaled.
SW_INLINE void finish(const Int8& a, const Block& block, QuadInts sums, float scale, int64_t m, int64_t n, int64_t there) {
    float* y = a.y + m * a.out + n;
    QuadInts before{};
    Quad scales{}, bias{};
    const size_t bytes = 4 * there;
    if (!block.first) std::memcpy(&before, y, bytes);
    sums += before;
    if (!block.last) {
        std::memcpy(y, &sums, bytes);
        return;
    }
    std::memcpy(&scales, a.scale + n, bytes);
    if (a.bias) std::memcpy(&bias, a.bias + n, bytes);
    const Quad scaled = __builtin_convertvector(sums, Quad) * scale * scales + bias;
    std::memcpy(y, &scaled, bytes);
}

// Rows m.. m + R of x against a panel of `outputs` rows of weights from n on.
template <int R>
void tile(const Int8& a, const Block& block, const int16_t* x, const int16_t* w, const float* scales, int64_t m, int64_t n,
          int64_t outputs) {
    const int64_t apart = stride(block.width);
    for (int64_t i = 0; i < outputs; i += kOutputs) {
        QuadInts sums[R];
        multiply<R>(x + m * apart, w + i * apart, block.width, sums);
        const int64_t there = least(kOutputs, outputs - i);
        each<R>([&](auto r) {
            if (there == kOutputs) finish(a, block, sums[r], scales[m + r], m + r, n + i, kOutputs);
            else finish(a, block, sums[r], scales[m + r], m + r, n + i, there);
        });
    }
}

// Outputs [begin, end) of rows [m, last).
void panels(const Int8& a, const Block& block, const int16_t* x, const float* scales, int64_t m, int64_t last, int64_t begin,
            int64_t end, int16_t* w) {
    const int64_t apart = stride(block.width);
    for (int64_t n = begin; n < end; n += kPanel) {
        const int64_t outputs = least(kPanel, end - n);
        for (int64_t i = 0; i < kPanel; ++i) {
            const int8_t* from = a.weight + (n + i) * a.in + block.start;
            if (i < outputs) widen_row(from, block.width, n + i + kPanel < a.out ? from + kPanel * a.in : from, w + i * apart);
            else std::memset(w + i * apart, 0, apart * sizeof *w);
        }
        int64_t r = m;
        for (; r + kTall <= last; r += kTall) tile<kTall>(a, block, x, w, scales, r, n, outputs);
        for (; r < last; ++r) tile<1>(a, block, x, w, scales, r, n, outputs);
    }
}

thread_local Scratch row_scratch, panel_scratch;

}  // namespace

void int8(const Int8& a) {
    const int64_t cells = a.rows * (a.in / kInputs * stride(kInputs) + stride(a.in % kInputs)), work = a.rows * a.in * a.out;
    float* memory = row_scratch.floats(cells / 2 + a.rows);
    auto* x = reinterpret_cast<int16_t*>(memory);
    float* scales = memory + cells / 2;
    split(a.rows, a.threads, a.rows * a.in, [&](int64_t begin, int64_t end) { round_rows(a, begin, end, x, scales); });
    split((a.out + kPanel - 1) / kPanel, a.threads, work, [&](int64_t begin, int64_t end) {
        auto* w = reinterpret_cast<int16_t*>(panel_scratch.floats(kPanel * stride(kInputs) / 2));
        for (int64_t m = 0; m < a.rows; m += kRows) {
            for (int64_t k = 0; k < a.in; k += kInputs) {
                const Block block{k, least(kInputs, a.in - k), k == 0, k + kInputs >= a.in};
                panels(a, block, x + k / kInputs * stride(kInputs) * a.rows, scales, m, least(m + kRows, a.rows), begin * kPanel,
                       least(end * kPanel, a.out), w);
            }
        }
    });
}

}  // namespace sparseworks::SW_ISA
