// Weights input-major and few rows of x, each with inputs that are skipped: the weights of eight active inputs are added per pass
// over a piece of y that stays in L1, and the next eight are fetched meanwhile, since the processor cannot guess where they lie.
#include "active.h"
#include "linear.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kPiece = 4096;  // outputs: 16 KiB of sums

template <int N, class T>
SW_INLINE void add(const T* const* rows, const T* const* next, const float* factors, int64_t width, float* y) {
    constexpr int64_t kLine = 64 / sizeof(T);
    Lanes x[N];
    each<N>([&](auto i) { x[i] = all(factors[i]); });
    int64_t n = 0;
    for (; n + kLine <= width; n += kLine) {
        each<N>([&](auto i) { __builtin_prefetch(next[i] + n); });
        each<kLine / W>([&](auto v) {
            Lanes sum = load(y + n + v * W);
            each<N>([&](auto i) { sum = multiply_add(load(rows[i] + n + v * W), x[i], sum); });
            store(y + n + v * W, sum);
        });
    }
    for (; n < width; n += W) {
        Lanes sum = load_first(y + n, width - n);
        each<N>([&](auto i) { sum = multiply_add(load_first(rows[i] + n, width - n), x[i], sum); });
        store_first(y + n, sum, width - n);
    }
}

template <class T>
void piece(const InputMajor& a, const Active& list, int64_t first, int64_t width, float* y) {
    const T* weight = static_cast<const T*>(a.weight) + first;
    for (int64_t n = 0; n < width; ++n) y[n] = 0.0f;
    const T *rows[kTogether], *next[kTogether];
    const auto row = [&](int64_t i) { return weight + list.inputs[i < list.count ? i : list.count - 1] * a.out; };
    int64_t i = 0;
    for (; i + kTogether <= list.count; i += kTogether) {
        for (int j = 0; j < kTogether; ++j) rows[j] = row(i + j), next[j] = row(i + kTogether + j);
        add<kTogether>(rows, next, list.factors + i, width, y);
    }
    for (; i < list.count; ++i) {
        rows[0] = next[0] = row(i);
        add<1>(rows, next, list.factors + i, width, y);
    }
    for (int64_t n = 0; n < width; ++n) {
        y[n] = y[n] * (a.scale ? a.scale[first + n] : 1.0f) + (a.bias ? a.bias[first + n] : 0.0f);
    }
}

template <class T>
void run(const InputMajor& a) {
    constexpr int64_t kUnit = 64;  // outputs: threads share no line of y
    split((a.out + kUnit - 1) / kUnit, a.threads, a.rows * a.in * a.out, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        const int64_t last = end * kUnit < a.out ? end * kUnit : a.out;
        for (int64_t m = 0; m < a.rows; ++m) {
            const Active list = active(a.x + m * a.in, a.in, a.threshold ? a.threshold[m] : 0.0f, scratch);
            for (int64_t n = begin * kUnit; n < last; n += kPiece) {
                piece<T>(a, list, n, n + kPiece < last ? kPiece : last - n, a.y + m * a.out + n);
            }
        }
    });
}

}  // namespace

void inmajor(const InputMajor& a) {
    if (a.stored == Stored::fp32) return run<float>(a);
    if (a.stored == Stored::bf16) return run<uint16_t>(a);
    run<int8_t>(a);
}

}  // namespace sparseworks::SW_ISA
