// Kept runs of sixteen inputs, four bits a weight: a run is widened once for up to four rows of x. Threads get equal numbers of
// runs, not of outputs.
#include "../simd.h"
#include "linear.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int kRun = 16, kVectors = kRun / W, kChains = W == 16 ? 2 : 1;  // of sums, so that one need not wait for another

// fp16, finite.
SW_INLINE float half(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else  // the exponent's offset is a product with 2^112
    const int32_t shifted = (h & 0x7fff) << 13;
    float value;
    std::memcpy(&value, &shifted, 4);
    value *= 0x1p112f;
    return h & 0x8000 ? -value : value;
#endif
}

// scale (code - zero) of the sixteen codes at p; the even one of a byte is its low half.
SW_INLINE void weights(const uint8_t* p, uint8_t zero, Lanes scale, Lanes (&w)[kVectors]) {
#if SW_LANES == 8 || defined(SW_ISA_AVX512)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), low = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
    const __m128i above = _mm_sub_epi8(codes, _mm_set1_epi8(static_cast<char>(zero)));
#if SW_LANES == 8
    w[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(above));
    w[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(above, 8)));
#else
    w[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(above));
#endif
#else
    int32_t above[kRun];
    each<kRun>([&](auto i) { above[i] = (p[i / 2] >> (i % 2 * 4) & 15) - zero; });
    each<kVectors>([&](auto i) { w[i] = __builtin_convertvector(load(above + i * W), Lanes); });
#endif
    each<kVectors>([&](auto i) { w[i] *= scale; });
}

// One output of R rows of x: the runs [first, last).
template <int R, class Column>
SW_INLINE void output(const Groups4& a, const float* x, int64_t first, int64_t last, float (&y)[R]) {
    const auto* columns = static_cast<const Column*>(a.columns);
    Lanes sums[kChains][R][kVectors];
    each<kChains>([&](auto c) { each<R>([&](auto r) { each<kVectors>([&](auto i) { sums[c][r][i] = zero(); }); }); });
    const auto add = [&](auto chain, int64_t g) {
        Lanes w[kVectors];
        weights(a.codes + g * (kRun / 2), a.zero[g], all(half(a.scale[g])), w);
        const float* at = x + columns[g] * kRun;
        each<R>([&](auto r) {
            each<kVectors>([&](auto i) { sums[chain][r][i] = multiply_add(w[i], load(at + r * a.in + i * W), sums[chain][r][i]); });
        });
    };
    int64_t g = first;
    for (; g + kChains <= last; g += kChains) each<kChains>([&](auto c) { add(c, g + c); });
    for (; g < last; ++g) add(std::integral_constant<int, 0>{}, g);
    each<R>([&](auto r) {
        Lanes total = zero();
        each<kChains>([&](auto c) { each<kVectors>([&](auto i) { total += sums[c][r][i]; }); });
        y[r] = sum(total);
    });
}

template <int R, class Column>
SW_INLINE void outputs(const Groups4& a, int64_t m, int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
        float y[R];
        output<R, Column>(a, a.x + m * a.in, a.ptr[n], a.ptr[n + 1], y);
        each<R>([&](auto r) { a.y[(m + r) * a.out + n] = y[r] + (a.bias ? a.bias[n] : 0.0f); });
    }
}

template <class Column>
void run(const Groups4& a) {
    const int64_t parts = a.threads;
    split(parts, a.threads, a.rows * a.ptr[a.out] * kRun, [&](int64_t begin, int64_t end) {
        const int64_t first = balanced(a.ptr, a.out, begin, parts), last = balanced(a.ptr, a.out, end, parts);
        int64_t m = 0;
        for (; m + 4 <= a.rows; m += 4) outputs<4, Column>(a, m, first, last);
        for (; m + 2 <= a.rows; m += 2) outputs<2, Column>(a, m, first, last);
        if (m < a.rows) outputs<1, Column>(a, m, first, last);
    });
}

}  // namespace

void groups4(const Groups4& a) { a.wide ? run<uint16_t>(a) : run<uint8_t>(a); }

}  // namespace sparseworks::SW_ISA
