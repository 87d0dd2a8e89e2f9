// Inputs that are zero are skipped with all their weights: W lies input-major, and only the rows of active inputs are read. Eight
// of them are summed per pass over a chunk of outputs, which stays in L1; the beginnings of the next eight are fetched meanwhile.
#include "../simd.h"
#include "linear.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kTogether = 8;
constexpr int64_t kLines = 4;  // lines of each next row, the processor fetches the rest by itself

// Active inputs of a row of x: their numbers and values.
struct Active {
    int32_t* number;
    float* value;
    int64_t count;
};

void find(const Skip& a, const float* x, Active& active) {
    active.count = 0;
    for (int64_t k = 0; k < a.in; ++k) {
        active.number[active.count] = static_cast<int32_t>(k);
        active.value[active.count] = x[k];
        active.count += !(std::fabs(x[k]) <= a.threshold);  // NaN is active
    }
}

template <int N, class T>
SW_INLINE void rows(const Skip& a, const T* weight, const Active& active, int64_t i, int64_t n, int64_t end, float* y) {
    const T* w[N];
    Lanes x[N];
    each<N>([&](auto r) {
        w[r] = weight + static_cast<int64_t>(active.number[i + r]) * a.out;
        x[r] = all(active.value[i + r]);
        if (i + N + r < active.count) {
            const T* next = weight + static_cast<int64_t>(active.number[i + N + r]) * a.out + n;
            for (int64_t line = 0; line < kLines; ++line) __builtin_prefetch(next + line * 64 / sizeof(T));
        }
    });
    int64_t k = n;
    for (; k + W <= end; k += W) {
        Lanes even = load(y + k), odd = zero();
        each<N>([&](auto r) {
            Lanes& chain = r % 2 ? odd : even;
            chain = multiply_add(load(w[r] + k), x[r], chain);
        });
        store(y + k, even + odd);
    }
    if (k < end) {
        Lanes total = load_first(y + k, end - k);
        each<N>([&](auto r) { total = multiply_add(load_first(w[r] + k, end - k), x[r], total); });
        store_first(y + k, total, end - k);
    }
}

template <class T>
void run(const Skip& a) {
    const T* weight = static_cast<const T*>(a.weight);
    split(a.threads, a.threads, a.rows * a.in * a.out, [&](int64_t begin, int64_t last) {
        // Whole vectors of outputs to each thread.
        const int64_t vectors = (a.out + W - 1) / W, n = vectors * begin / a.threads * W, to = vectors * last / a.threads * W;
        const int64_t end = to < a.out ? to : a.out;
        static thread_local Scratch scratch;
        float* memory = scratch.floats(2 * a.in + 16);
        Active active{reinterpret_cast<int32_t*>(memory + a.in + 8), memory, 0};
        for (int64_t m = 0; m < a.rows; ++m) {
            float* y = a.y + m * a.out;
            find(a, a.x + m * a.in, active);
            for (int64_t k = n; k < end; ++k) y[k] = 0.0f;
            int64_t i = 0;
            for (; i + kTogether <= active.count; i += kTogether) rows<kTogether>(a, weight, active, i, n, end, y);
            for (; i < active.count; ++i) rows<1>(a, weight, active, i, n, end, y);
            for (int64_t k = n; k < end; ++k) y[k] = y[k] * (a.scale ? a.scale[k] : 1.0f) + (a.bias ? a.bias[k] : 0.0f);
        }
    });
}

}  // namespace

void skip(const Skip& a) {
    if (a.stored == Stored::fp32) return run<float>(a);
    a.stored == Stored::bf16 ? run<uint16_t>(a) : run<int8_t>(a);
}

}  // namespace sparseworks::SW_ISA
