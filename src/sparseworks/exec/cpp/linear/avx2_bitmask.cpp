// One bit per entry: the kept values of eight columns are spread over eight lanes by one table-driven shuffle. Up to four
// rows of x share the spreading.
#include "../avx2.h"
#include "linear.h"

namespace sparseworks::avx2 {
namespace {

// For each byte: where every lane's value comes from. For bf16 a byte shuffle that puts a value into the upper half of its
// lane and clears absent lanes; for int8 one that puts it into the top byte; for fp32 lane numbers.
struct Tables {
    alignas(32) uint8_t bytes[256][32];
    alignas(32) uint8_t tops[256][32];
    alignas(8) uint8_t lanes[256][8];
    Tables() {
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
const Tables tables;

SW_INLINE __m256 spread(const uint16_t* values, uint32_t mask) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
    return _mm256_castsi256_ps(
        _mm256_shuffle_epi8(both, _mm256_load_si256(reinterpret_cast<const __m256i*>(tables.bytes[mask]))));
}

// Times 2^24, which `run` takes out of the row's scale.
SW_INLINE __m256 spread(const int8_t* values, uint32_t mask) {
    const __m256i both = _mm256_castpd_si256(_mm256_broadcast_sd(reinterpret_cast<const double*>(values)));
    return _mm256_cvtepi32_ps(
        _mm256_shuffle_epi8(both, _mm256_load_si256(reinterpret_cast<const __m256i*>(tables.tops[mask]))));
}

SW_INLINE __m256 spread(const float* values, uint32_t mask) {
    const __m256i lanes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(tables.lanes[mask])));
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit), bit);
    return _mm256_and_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(values), lanes), _mm256_castsi256_ps(kept));
}

constexpr int64_t kAhead = 1024;  // bytes of values fetched ahead; beyond the end a prefetch does nothing

// R rows of x against one row of W.
template <int R, class Value>
SW_INLINE void row(const Bitmask& a, int64_t n, int64_t m) {
    const uint8_t* bits = a.bits + n * a.row_bytes;
    const auto* values = static_cast<const typename Value::Type*>(a.values) + (a.ptr ? a.ptr[n] : n * a.per_row);
    const float* x = a.x + m * a.in;
    constexpr int C = R == 1 ? 4 : R == 2 ? 2 : 1;
    __m256 sum[C][R];
    each<C>([&](auto c) { each<R>([&](auto r) { sum[c][r] = _mm256_setzero_ps(); }); });
    int64_t k = 0;
    for (; k + 32 <= a.in; k += 32) {
        uint32_t word;
        __builtin_memcpy(&word, bits + k / 8, 4);
        if constexpr (sizeof(typename Value::Type) > 1) {  // bytes arrive in time by themselves
            _mm_prefetch(reinterpret_cast<const char*>(values) + kAhead, _MM_HINT_T0);
        }
        each<4>([&](auto b) {
            const uint32_t mask = word >> (8 * b) & 0xFF;
            const __m256 w = spread(values, mask);
            values += __builtin_popcount(mask);
            each<R>([&](auto r) {
                const __m256 lanes = _mm256_loadu_ps(x + r * a.in + k + 8 * b);
                sum[b % C][r] = _mm256_fmadd_ps(w, lanes, sum[b % C][r]);
            });
        });
    }
    for (; k < a.in; k += 8) {
        const uint32_t mask = bits[k / 8];
        const __m256 w = spread(values, mask);
        const __m256i there = first_lanes(a.in - k);
        values += __builtin_popcount(mask);
        each<R>([&](auto r) { sum[0][r] = _mm256_fmadd_ps(w, _mm256_maskload_ps(x + r * a.in + k, there), sum[0][r]); });
    }
    each<R>([&](auto r) {
        each<C - 1>([&](auto c) { sum[0][r] = _mm256_add_ps(sum[0][r], sum[c + 1][r]); });
        const float total = sum8(sum[0][r]);
        a.y[(m + r) * a.out + n] = (a.bias ? a.bias[n] : 0.0f) + (a.scale ? total * 0x1p-24f * a.scale[n] : total);
    });
}

template <class Value>
void run(const Bitmask& a) {
    split(a.out, a.threads, a.rows * a.out * a.row_bytes * 4, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            int64_t m = 0;
            for (; m + 4 <= a.rows; m += 4) row<4, Value>(a, n, m);
            if (m + 2 <= a.rows) row<2, Value>(a, n, m), m += 2;
            if (m < a.rows) row<1, Value>(a, n, m);
        }
    });
}

}  // namespace

void bitmask(const Bitmask& a) { a.scale ? run<I8>(a) : a.bf16 ? run<BF16>(a) : run<F32>(a); }

}  // namespace sparseworks::avx2
