// Inputs that kept weights of one row ask for: lanes are filled by scalar loads, which outrun the gather instruction of AVX2 on Zen; that
// of AVX-512 is up to 1.4 times as fast as they are on a Sapphire Rapids, and nowhere much slower (benchmarks/kernels/instructions.py).
#pragma once
#include <type_traits>

#include "../simd.h"

namespace {

// Four columns in one read.
template <class Column>
SW_INLINE Quad gather_four(const float* x, const Column* columns) {
    using Word = std::conditional_t<sizeof(Column) == 1, uint32_t, uint64_t>;
    constexpr int kBits = 8 * sizeof(Column);
    constexpr Word kMask = (Word{1} << kBits) - 1;
    Word word;
    std::memcpy(&word, columns, sizeof word);
    return Quad{x[word & kMask], x[word >> kBits & kMask], x[word >> 2 * kBits & kMask], x[word >> 3 * kBits]};
}

template <class Column>
SW_INLINE Lanes gather(const float* x, const Column* columns) {
#if defined(SW_ISA_AVX512)
    if constexpr (sizeof(Column) == 2) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns));
        return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(at), x, 4);
    } else {
        return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(columns))), x, 4);
    }
#endif
    Quad part[W / 4];
    each<W / 4>([&](auto i) { part[i] = gather_four(x, columns + 4 * i); });
    return join(part);
}

// The sums of one row grow in several chains, and for what does not fill a vector in four lanes.
struct Gathered {
    static constexpr int kChains = W == 4 ? 4 : 2;
    static constexpr int kStep = kChains * W;

    Lanes sums[kChains];
    Quad rest;

    SW_INLINE Gathered() : rest{} {
        each<kChains>([&](auto c) { sums[c] = zero(); });
    }

    // kStep entries.
    template <class Column, class T>
    SW_INLINE void step(const float* x, const Column* columns, const T* values) {
        each<kChains>([&](auto c) { sums[c] = multiply_add(gather(x, columns + c * W), load(values + c * W), sums[c]); });
    }

    // Fewer than kStep, a multiple of four.
    template <class Column, class T>
    SW_INLINE void last(const float* x, const Column* columns, const T* values, int64_t n) {
        int64_t i = 0;
        each<kChains - 1>([&](auto c) {
            if (i + W > n) return;
            sums[c] = multiply_add(gather(x, columns + i), load(values + i), sums[c]);
            i += W;
        });
        each<W / 4 - 1>([&](auto) {
            if (i >= n) return;
            rest += gather_four(x, columns + i) * load_four(values + i);
            i += 4;
        });
    }

    SW_INLINE float total() const {
        Lanes all = sums[0];
        each<kChains - 1>([&](auto c) { all += sums[c + 1]; });
        return W > 4 ? sum(all) + sum(rest) : sum(all);
    }
};

}  // namespace
