// Attention of few queries over keys and values of which a bit says whether an entry is there: each is spread once for four queries.
#include "../linear/spread.h"
#include "../simd.h"
#include "attention.h"
#include "online.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int kFour = 4;          // queries
constexpr int64_t kAhead = 1024;  // bytes of values fetched ahead; beyond the end a prefetch does nothing

constexpr int64_t kNext = 512;    // the same of one channel

thread_local Scratch scratch;

template <class T>
struct Rows {
    const uint8_t* bits;
    const T* values;
    const int32_t* ptr;
};

template <class T>
SW_INLINE void fetch(const T* values) {
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kAhead);
}

// Scores of four queries and up to 64 keys, whose rows are those of tokens.
template <class T>
SW_INLINE void add_scores(const float* q, const Rows<T>& k, int64_t first, int64_t keys, int64_t d, float* score) {
    constexpr uint32_t kLanes = (1u << W) - 1;
    for (int64_t j = 0; j < keys; j += kKeys) {
        Lanes sums[kFour][kKeys];
        each<kKeys>([&](auto i) {  // behind the last key: it once more, whose scores nobody reads
            const int64_t token = first + (j + i < keys ? j + i : keys - 1);
            const T* values = k.values + k.ptr[token];
            const uint8_t* bits = k.bits + token * (d / 8);
            Lanes sum[kFour];
            each<kFour>([&](auto n) { sum[n] = zero(); });
            for (int64_t c = 0; c < d; c += 32) {
                uint32_t word;
                std::memcpy(&word, bits + c / 8, 4);
                fetch(values);
                each<32 / W>([&](auto b) {
                    const uint32_t mask = word >> (W * b) & kLanes;
                    const Lanes w = spread(values, mask);
                    values += count(mask);
                    each<kFour>([&](auto n) { sum[n] = multiply_add(w, load(q + n * d + c + W * b), sum[n]); });
                });
            }
            each<kFour>([&](auto n) { sums[n][i] = sum[n]; });
        });
        each<kFour>([&](auto n) { add_sums(sums[n], score + n * kPage + j); });
    }
}

// out[c][n] += sum over up to 64 tokens of weight_n,j v_jc, whose rows are those of channels; `at` goes on to the next tokens.
template <class T>
SW_INLINE void add_values(const float* weight, const Rows<T>& v, int32_t* at, int64_t first, int64_t keys, int64_t d, int64_t row,
                          float* out) {
    constexpr uint64_t kLanes = (1u << W) - 1;
    for (int64_t c = 0; c < d; ++c) {
        uint64_t word = 0;
        std::memcpy(&word, v.bits + c * row + first / 8, keys > 32 ? 8 : 4);
        const T* values = v.values + at[c];
        const char* ahead = reinterpret_cast<const char*>(values) + kNext;  // what two pages on will read, half of it kept
        for (int64_t line = 0; line < kPage / 2 * static_cast<int64_t>(sizeof(T)); line += 64) __builtin_prefetch(ahead + line);
        __builtin_prefetch(v.bits + c * row + first / 8 + 64);
        Lanes sums[kFour];
        each<kFour>([&](auto n) { sums[n] = zero(); });
        each<kPage / W>([&](auto b) {
            const uint32_t mask = static_cast<uint32_t>(word >> (W * b) & kLanes);
            const Lanes w = spread(values, mask);
            values += count(mask);
            each<kFour>([&](auto n) { sums[n] = multiply_add(w, load(weight + n * kPage + W * b), sums[n]); });
        });
        at[c] = static_cast<int32_t>(values - v.values);
        add_sums(sums, out + c * kFour);
    }
}

template <class T>
Rows<T> rows(const int64_t* address) {
    return {reinterpret_cast<const uint8_t*>(address[0]), reinterpret_cast<const T*>(address[1]),
            reinterpret_cast<const int32_t*>(address[2])};
}

// Four queries over all pieces of a segment; those that are not there are zero and not written.
template <class T>
void four(const Bitmaps& a, int64_t segment, int64_t query) {
    float* memory = scratch.floats(3 * kFour * a.d + kFour * kPage);
    float *out = memory, *q = out + kFour * a.d, *score = q + kFour * a.d;
    int32_t* at = reinterpret_cast<int32_t*>(score + kFour * kPage);
    const int64_t there = a.queries - query < kFour ? a.queries - query : kFour;
    const float* given = a.q + (segment * a.queries + query) * a.d;
    for (int64_t c = 0; c < kFour * a.d; ++c) out[c] = 0, q[c] = c < there * a.d ? given[c] * a.scale : 0.0f;
    State states[kFour];
    for (State& s : states) s = {out, kNothing, 0};
    for (int64_t p = a.first[segment]; p < a.first[segment + 1]; ++p) {
        const int64_t *piece = a.pieces + p * 7, tokens = piece[6], row = (tokens + 31) / 32 * 4;
        const Rows<T> k = rows<T>(piece), v = rows<T>(piece + 3);
        for (int64_t c = 0; c < a.d; ++c) at[c] = v.ptr[c];
        for (int64_t first = 0; first < tokens; first += kPage) {
            const int64_t keys = tokens - first < kPage ? tokens - first : kPage;
            for (int64_t j = 0; j < kFour * kPage; j += W) store(score + j, zero());
            add_scores(q, k, first, keys, a.d, score);
            float shrink[kFour];
            bool shrinks = false;
            for (int n = 0; n < kFour; ++n) {
                const float before = states[n].most;
                soften(states[n], score + n * kPage, keys, 0);
                shrink[n] = before == states[n].most ? 1.0f : exponential(all(before - states[n].most))[0];
                shrinks |= before != states[n].most;
            }
            for (int64_t c = 0; shrinks && c < a.d; ++c) each<kFour>([&](auto n) { out[c * kFour + n] *= shrink[n]; });
            add_values(score, v, at, first, keys, a.d, row, out);
        }
    }
    for (int64_t n = 0; n < there; ++n) {
        const int64_t to = segment * a.queries + query + n;
        const float share = states[n].total != 0 ? 1 / states[n].total : 0.0f;
        a.lse[to] = states[n].total != 0 ? states[n].most + std::log(states[n].total) : kNothing;
        for (int64_t c = 0; c < a.d; ++c) a.out[to * a.d + c] = out[c * kFour + n] * share;
    }
}

}  // namespace

void attend_bitmaps(const Bitmaps& a) {
    const int64_t turns = (a.queries + kFour - 1) / kFour;
    dynamic(a.segments * turns, a.threads, [&](int64_t i) {
        if (a.half) four<uint16_t>(a, i / turns, i % turns * kFour);
        else four<float>(a, i / turns, i % turns * kFour);
    });
}

}  // namespace sparseworks::SW_ISA
