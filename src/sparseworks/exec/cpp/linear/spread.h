// Packed values to the lanes whose bits are set, zero to the others: up to W values are read, however few there are.
#pragma once
#include "../simd.h"

namespace {

#if SW_LANES == 8

// For each byte where every lane's value comes from. For bf16 a byte shuffle that puts a value into the upper half of its
// lane and clears absent lanes; for int8 one that puts it into the top byte; for fp32 lane numbers.
struct Tables {
    alignas(32) uint8_t bytes[256][32] = {};
    alignas(32) uint8_t tops[256][32] = {};
    alignas(8) uint8_t lanes[256][8] = {};
    constexpr Tables() {
        for (int mask = 0; mask < 256; ++mask) {
            for (int lane = 0, next = 0; lane < 8; ++lane) {
                const bool kept = mask >> lane & 1;
                lanes[mask][lane] = kept ? next : 0;
                uint8_t* four = bytes[mask] + 4 * lane;
                four[0] = four[1] = 0x80;
                four[2] = kept ? 2 * next : 0x80;
                four[3] = kept ? 2 * next + 1 : 0x80;
                uint8_t* top = tops[mask] + 4 * lane;
                top[0] = top[1] = top[2] = 0x80;
                top[3] = kept ? next : 0x80;
                next += kept;
            }
        }
    }
};
constexpr Tables tables;  // before any code of this instruction set runs

constexpr float kByteUnit = 0x1p-24f;  // what a 1 of int8 becomes, inverted

SW_INLINE int count(uint32_t mask) { return __builtin_popcount(mask); }

SW_INLINE Lanes spread(const uint16_t* values, uint32_t mask) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
    return _mm256_castsi256_ps(
        _mm256_shuffle_epi8(both, _mm256_load_si256(reinterpret_cast<const __m256i*>(tables.bytes[mask]))));
}
SW_INLINE Lanes spread(const int8_t* values, uint32_t mask) {
    const __m256i both = _mm256_castpd_si256(_mm256_broadcast_sd(reinterpret_cast<const double*>(values)));
    return _mm256_cvtepi32_ps(
        _mm256_shuffle_epi8(both, _mm256_load_si256(reinterpret_cast<const __m256i*>(tables.tops[mask]))));
}
SW_INLINE Lanes spread(const float* values, uint32_t mask) {
    const __m256i lanes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(tables.lanes[mask])));
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit), bit);
    return _mm256_and_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(values), lanes), _mm256_castsi256_ps(kept));
}

#elif defined(SW_ISA_AVX512)

constexpr float kByteUnit = 1.0f;

SW_INLINE int count(uint32_t mask) { return __builtin_popcount(mask); }

// The instruction that does it; of narrow values after they are widened, for those of its own came later than AVX-512.
template <class T>
SW_INLINE Lanes spread(const T* values, uint32_t mask) {
    return _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), load(values));
}

#else

constexpr float kByteUnit = 1.0f;

// Four bits at a time.
struct Tables {
    alignas(16) int32_t kept[16][4] = {};
    uint8_t from[16][4] = {}, counts[16] = {};
    constexpr Tables() {
        for (int mask = 0; mask < 16; ++mask) {
            int next = 0;
            for (int lane = 0; lane < 4; ++lane) {
                const bool set = mask >> lane & 1;
                from[mask][lane] = set ? next : 0;
                kept[mask][lane] = set ? -1 : 0;
                next += set;
            }
            counts[mask] = next;
        }
    }
};
constexpr Tables tables;  // before any code of this instruction set runs

SW_INLINE int count(uint32_t mask) {
    int n = 0;
    each<W / 4>([&](auto i) { n += tables.counts[mask >> 4 * i & 15]; });
    return n;
}

template <class T>
SW_INLINE Quad spread_four(const T* values, uint32_t mask) {
    using FourInts = int32_t __attribute__((vector_size(16)));
    const uint8_t* from = tables.from[mask];
    const Quad v = {widen(values[from[0]]), widen(values[from[1]]), widen(values[from[2]]), widen(values[from[3]])};
    FourInts kept;
    std::memcpy(&kept, tables.kept[mask], sizeof kept);
    return reinterpret_cast<Quad>(reinterpret_cast<FourInts>(v) & kept);
}

template <class T>
SW_INLINE Lanes spread(const T* values, uint32_t mask) {
    Quad part[W / 4];
    each<W / 4>([&](auto i) {
        part[i] = spread_four(values, mask >> 4 * i & 15);
        values += tables.counts[mask >> 4 * i & 15];
    });
    return join(part);
}

#endif

}  // namespace
