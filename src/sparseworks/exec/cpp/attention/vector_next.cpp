// One token of a decoder: rotate, append, attend. Bound by reading the cache once, so all query heads of a key head walk through it
// together.
#include "../simd.h"
#include "attention.h"
#include "online.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kStep = 16;  // `width` is a multiple of that
constexpr int kStepLanes = 16 / W;

thread_local Scratch scratch;

SW_INLINE void put(float* to, float x) { *to = x; }
// To the nearest bfloat16, ties to even; NaN stays one.
SW_INLINE void put(uint16_t* to, float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    const bool nan = (word & 0x7fffffff) > 0x7f800000;
    *to = static_cast<uint16_t>(nan ? (word >> 16) | 0x40 : (word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

// x and zeros up to `width`.
template <class T>
SW_INLINE void copy(const Next& a, const float* x, float scale, T* to) {
    for (int64_t i = 0; i < a.width; ++i) put(to + i, i < a.d ? x[i] * scale : 0.0f);
}

// x_i cos_i - x_{i + d/2} sin_i and x_{i + d/2} cos_{i + d/2} + x_i sin_{i + d/2}, times `scale`, and zeros up to `width`.
template <class T>
SW_INLINE void rotate(const Next& a, int64_t sequence, const float* x, float scale, T* to) {
    if (!a.cos) return copy(a, x, scale, to);
    const int64_t half = a.d / 2, row = a.angles == 1 ? 0 : sequence * a.d;
    const float *cos = a.cos + row, *sin = a.sin + row;
    for (int64_t i = 0; i < half; ++i) {
        put(to + i, (x[i] * cos[i] - x[half + i] * sin[i]) * scale);
        put(to + half + i, (x[half + i] * cos[half + i] + x[i] * sin[half + i]) * scale);
    }
    for (int64_t i = a.d; i < a.width; ++i) put(to + i, 0.0f);
}

// Adds weight_n,j v_j to N vectors of the sums of Q queries.
template <int Q, int N, class T>
SW_INLINE void add_values(const float* weight, int64_t keys, const T* v, int64_t width, float* out) {
    Lanes sums[Q][N];
    each<Q>([&](auto n) { each<N>([&](auto i) { sums[n][i] = load(out + n * width + i * W); }); });
    for (int64_t j = 0; j < keys; ++j) {
        Lanes value[N];
        each<N>([&](auto i) { value[i] = load(v + j * width + i * W); });
        each<Q>([&](auto n) {
            const Lanes p = all(weight[n * kPage + j]);
            each<N>([&](auto i) { sums[n][i] = multiply_add(p, value[i], sums[n][i]); });
        });
    }
    each<Q>([&](auto n) { each<N>([&](auto i) { store(out + n * width + i * W, sums[n][i]); }); });
}

template <class T>
SW_INLINE void prefetch(const T* p, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
}

// `next`: keys to fetch meanwhile, with the values of this page; null where that was done.
template <int Q, class T>
SW_INLINE void page(const float* q, const T* k, const T* v, const T* next, const float* mask, int64_t keys, int64_t width,
                    State* states, float* score) {
    for (int n = 0; n < Q; ++n) {
        for (int64_t j = 0; j < kPage; j += W) store(score + n * kPage + j, mask ? load_first(mask + j, keys - j) : zero());
    }
    for (int64_t j = 0; j < keys; j += kKeys) {
        const T* rows[kKeys];  // behind the last key: it once more, whose scores nobody reads
        each<kKeys>([&](auto i) { rows[i] = k + (j + i < keys ? j + i : keys - 1) * width; });
        if (next) prefetch(v + j * width, kKeys * width), prefetch(next + j * width, kKeys * width);
        add_scores<Q>(q, width, rows, score + j);
    }
    each<Q>([&](auto n) { soften(states[n], score + n * kPage, keys, width); });
    int64_t c = 0;
    for (; c + 2 * kStep <= width && W > 4; c += 2 * kStep) {
        add_values<Q, 2 * kStepLanes>(score, keys, v + c, width, states[0].out + c);
    }
    for (; c < width; c += kStep) add_values<Q, kStepLanes>(score, keys, v + c, width, states[0].out + c);
}

template <class T>
void key_head(const Next& a, int64_t sequence, int64_t kv) {
    const int64_t group = a.heads / a.kv_heads, item = sequence * a.kv_heads + kv, size = a.capacity * a.width;
    T *keys = static_cast<T*>(a.keys) + item * size, *values = static_cast<T*>(a.values) + item * size;
    rotate(a, sequence, a.k + item * a.d, 1.0f, keys + a.tokens * a.width);
    copy(a, a.v + item * a.d, 1.0f, values + a.tokens * a.width);

    float* memory = scratch.floats(2 * group * a.width + 2 * kPage + group * 16);
    float *q = memory + group * a.width, *score = q + group * a.width;
    State* states = reinterpret_cast<State*>(score + 2 * kPage);
    const int64_t first = sequence * a.heads + kv * group;
    for (int64_t n = 0; n < group; ++n) {
        rotate(a, sequence, a.q + (first + n) * a.d, a.scale, q + n * a.width);
        states[n] = {memory + n * a.width, kNothing, 0};
        for (int64_t c = 0; c < a.width; ++c) states[n].out[c] = 0;
    }
    const int64_t count = a.tokens + 1;
    for (int64_t t = 0; t < count; t += kPage) {
        const int64_t here = count - t < kPage ? count - t : kPage;
        const T *k = keys + t * a.width, *v = values + t * a.width;
        const float* mask = a.mask ? a.mask + sequence * count + t : nullptr;
        // Behind the last page of a head come the first keys of the next head, where there is no other.
        const T* next = t + kPage < count ? k + kPage * a.width : keys + size;
        for (int64_t n = 0; n < group; n += 2, next = nullptr) {
            const float* pair = q + n * a.width;
            if (n + 2 <= group) page<2>(pair, k, v, next, mask, here, a.width, states + n, score);
            else page<1>(pair, k, v, next, mask, here, a.width, states + n, score);
        }
    }
    for (int64_t n = 0; n < group; ++n) {
        float* out = a.out + (first + n) * a.d;
        const float share = states[n].total != 0 ? 1 / states[n].total : 0.0f;
        for (int64_t c = 0; c < a.d; ++c) out[c] = states[n].out[c] * share;
    }
}

}  // namespace

void attend_next(const Next& a) {
    const int64_t items = a.batch * a.kv_heads, work = a.batch * a.heads * (a.tokens + 1) * a.width * 2;
    split(items, a.threads, work, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (a.half) key_head<uint16_t>(a, i / a.kv_heads, i % a.kv_heads);
            else key_head<float>(a, i / a.kv_heads, i % a.kv_heads);
        }
    });
}

}  // namespace sparseworks::SW_ISA
