// Dense int8 weights and many rows of x in 16-bit fixed point: vpmaddwd cannot saturate here, unlike vpmaddubsw, and the rounding of
// x does not show beside that of the weights. Products of 8 bits need fewer instructions; torch's, which round x to 8, are faster.
//
// A block of x rounded to 16 bits stays in L2; a panel of weights is widened into L1 once for all its rows. Sums are whole numbers
// and wait in y between blocks of inputs.
#include "avx2_fixed.h"

namespace sparseworks::avx2 {
namespace {

constexpr int64_t kInputs = 1024, kRows = 128, kPanel = 8;  // 256 KiB of x, 16 KiB of weights
constexpr int kOutputs = 4;                                 // of a register tile

SW_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SW_INLINE int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
// Rows start a vector later each, so that their distances are no powers of two.
SW_INLINE int64_t stride(int64_t inputs) { return padded(inputs) + 16; }

SW_INLINE __m256i load(const int16_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
SW_INLINE void store(int16_t* p, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }

// One block of inputs: where it starts, how many there are, and whether sums begin or end with it.
struct Block {
    int64_t start, width;
    bool first, last;
};

// Inputs k.. of a row in 16 bits, beyond the end zeros.
void round_row(const float* x, int64_t n, float inverse, int16_t* to) {
    const __m256 scale = _mm256_set1_ps(inverse);
    for (int64_t k = 0; k < n; k += 16) {
        const __m256 low = k + 8 <= n ? _mm256_loadu_ps(x + k) : _mm256_maskload_ps(x + k, first_lanes(n - k));
        const __m256 high = k + 16 <= n ? _mm256_loadu_ps(x + k + 8) : _mm256_maskload_ps(x + k + 8, first_lanes(n - k - 8));
        const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(low, scale)),
                                                _mm256_cvtps_epi32(_mm256_mul_ps(high, scale)));
        store(to + k, _mm256_permute4x64_epi64(both, 0xD8));
    }
}

// x -> [block of inputs][row][padded inputs of the block], and what a level of each row is worth (NaN if it is not finite).
void round_rows(const Int8& a, int64_t begin, int64_t end, int16_t* cells, float* scales) {
    const float limit = static_cast<float>(a.limit);
    for (int64_t m = begin; m < end; ++m) {
        const float* x = a.x + m * a.in;
        const float most = Fixed::largest(x, a.in);
        const bool finite = most < INFINITY;
        const float inverse = finite && most > kTiny ? limit / most : 0.0f;
        scales[m] = finite ? most / limit : NAN;
        for (int64_t k = 0; k < a.in; k += kInputs) {
            const int64_t width = least(kInputs, a.in - k);
            int16_t* to = cells + k / kInputs * stride(kInputs) * a.rows + m * stride(width);
            if (finite) round_row(x + k, width, inverse, to);
            else std::memset(to, 0, padded(width) * sizeof *to);
        }
    }
}

// One row of weights widened to 16 bits; the same part of a later row is fetched meanwhile.
void widen_row(const int8_t* w, int64_t n, const int8_t* ahead, int16_t* to) {
    int64_t k = 0;
    for (; k + 64 <= n; k += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + k), _MM_HINT_T0);
        each<4>([&](auto i) {
            const int64_t at = k + 16 * i;
            store(to + at, _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + at))));
        });
    }
    for (; k < padded(n); ++k) to[k] = k < n ? w[k] : 0;
}

// R rows of x times kOutputs rows of weights: sums[r] are the outputs of row r.
template <int R>
SW_INLINE void multiply(const int16_t* x, const int16_t* w, int64_t width, __m128i (&sums)[R]) {
    const int64_t apart = stride(width);
    __m256i sum[R][kOutputs];
    each<R>([&](auto r) { each<kOutputs>([&](auto n) { sum[r][n] = _mm256_setzero_si256(); }); });
#pragma GCC unroll 2
    for (int64_t k = 0; k < width; k += 16) {
        __m256i lanes[R];
        each<R>([&](auto r) { lanes[r] = load(x + r * apart + k); });
        each<kOutputs>([&](auto n) {
            const __m256i weights = load(w + n * apart + k);
            each<R>([&](auto r) { sum[r][n] = Fixed::multiply_add(weights, lanes[r], sum[r][n]); });
        });
    }
    each<R>([&](auto r) {
        const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[r][0], sum[r][1]), _mm256_hadd_epi32(sum[r][2], sum[r][3]));
        sums[r] = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    });
}

// Sums of `there` outputs of one row: added to those of the blocks before, and after the last one scaled.
SW_INLINE void finish(const Int8& a, const Block& block, __m128i sums, float scale, int64_t m, int64_t n, int64_t there) {
    float* y = a.y + m * a.out + n;
    const __m128i lanes = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(there)), _mm_setr_epi32(0, 1, 2, 3));
    if (!block.first) sums = _mm_add_epi32(sums, _mm_maskload_epi32(reinterpret_cast<const int*>(y), lanes));
    if (!block.last) return _mm_maskstore_epi32(reinterpret_cast<int*>(y), lanes, sums);
    const __m128 bias = a.bias ? _mm_maskload_ps(a.bias + n, lanes) : _mm_setzero_ps();
    const __m128 scaled = _mm_mul_ps(_mm_cvtepi32_ps(sums), _mm_set1_ps(scale));
    _mm_maskstore_ps(y, lanes, _mm_fmadd_ps(scaled, _mm_maskload_ps(a.scale + n, lanes), bias));
}

// Rows m.. m + R of x against a panel of `outputs` rows of weights from n on.
template <int R>
void tile(const Int8& a, const Block& block, const int16_t* x, const int16_t* w, const float* scales, int64_t m, int64_t n,
          int64_t outputs) {
    const int64_t apart = stride(block.width);
    for (int64_t i = 0; i < outputs; i += kOutputs) {
        __m128i sums[R];
        multiply<R>(x + m * apart, w + i * apart, block.width, sums);
        each<R>([&](auto r) { finish(a, block, sums[r], scales[m + r], m + r, n + i, least(kOutputs, outputs - i)); });
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
        for (; r + 2 <= last; r += 2) tile<2>(a, block, x, w, scales, r, n, outputs);
        if (r < last) tile<1>(a, block, x, w, scales, r, n, outputs);
    }
}

thread_local Scratch rounded, widened;

}  // namespace

void int8(const Int8& a) {
    const int64_t cells = a.rows * (a.in / kInputs * stride(kInputs) + stride(a.in % kInputs)), work = a.rows * a.in * a.out;
    float* memory = rounded.floats(cells / 2 + a.rows);
    auto* x = reinterpret_cast<int16_t*>(memory);
    float* scales = memory + cells / 2;
    split(a.rows, a.threads, a.rows * a.in, [&](int64_t begin, int64_t end) { round_rows(a, begin, end, x, scales); });
    split((a.out + kPanel - 1) / kPanel, a.threads, work, [&](int64_t begin, int64_t end) {
        auto* w = reinterpret_cast<int16_t*>(widened.floats(kPanel * stride(kInputs) / 2));
        for (int64_t m = 0; m < a.rows; m += kRows) {
            for (int64_t k = 0; k < a.in; k += kInputs) {
                const Block block{k, least(kInputs, a.in - k), k == 0, k + kInputs >= a.in};
                panels(a, block, x + k / kInputs * stride(kInputs) * a.rows, scales, m, least(m + kRows, a.rows), begin * kPanel,
                       least(end * kPanel, a.out), w);
            }
        }
    });
}

}  // namespace sparseworks::avx2
