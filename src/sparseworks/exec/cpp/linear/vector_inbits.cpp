// As vector_inmajor.cpp, but of each input only the kept weights are stored, and one bit per output that says whose they are: the
// values of some active inputs are spread over the lanes of the outputs and added in one pass over a piece of y that stays in L1.
#include "active.h"
#include "linear.h"
#include "spread.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kPiece = 4096;  // outputs: 16 KiB of sums
constexpr int kAtOnce = 4;        // inputs in a pass: each needs a place among the values and a word of bits in registers

// Where the bits and the values of an input go on, and how far from there the values of the input that comes next are.
template <class T>
struct Place {
    const uint8_t* bits;
    const T* values;
    int64_t next;
};

// The bits of outputs [n, n + W), as far as there are any.
SW_INLINE uint32_t bits_at(const uint8_t* bits, int64_t n, int64_t width) {
    if constexpr (W == 4) return bits[n / 8] >> n % 8 & 15;
    if constexpr (W == 16) return bits[n / 8] | (n + 8 < width ? bits[n / 8 + 1] << 8 : 0);
    return bits[n / 8];
}

template <int N, class T>
SW_INLINE void add(Place<T> (&at)[N], const float* factors, int64_t width, float* y) {
    Lanes x[N];
    const T* values[N];
    each<N>([&](auto i) { x[i] = all(factors[i]), values[i] = at[i].values; });
    int64_t n = 0;
    for (; n + 32 <= width; n += 32) {
        uint32_t words[N];
        each<N>([&](auto i) {
            std::memcpy(&words[i], at[i].bits + n / 8, 4);
            __builtin_prefetch(values[i] + at[i].next);
        });
        each<32 / W>([&](auto v) {
            Lanes sum = load(y + n + W * v);
            each<N>([&](auto i) {
                const uint32_t mask = words[i] >> (W * v) & ((1u << W) - 1);
                sum = multiply_add(spread(values[i], mask), x[i], sum);
                values[i] += count(mask);
            });
            store(y + n + W * v, sum);
        });
    }
    for (; n < width; n += W) {
        Lanes sum = load_first(y + n, width - n);
        each<N>([&](auto i) {
            const uint32_t mask = bits_at(at[i].bits, n, width);
            sum = multiply_add(spread(values[i], mask), x[i], sum);
            values[i] += count(mask);
        });
        store_first(y + n, sum, width - n);
    }
    each<N>([&](auto i) { at[i].values = values[i]; });
}

// First value of an input at output n, a multiple of 64: those before it are the bits set before it.
SW_INLINE int32_t start(const InputBits& a, int64_t input, int64_t n) {
    const uint8_t* bits = a.bits + input * ((a.out + 7) / 8);
    int32_t first = a.ptr[input];
    for (int64_t byte = 0; byte < n / 8; byte += 8) {
        uint64_t word;
        std::memcpy(&word, bits + byte, 8);
        first += __builtin_popcountll(word);
    }
    return first;
}

// `starts`: of each active input the first value of this piece, then of the next.
template <class T>
void piece(const InputBits& a, const Active& list, int32_t* starts, int64_t first, int64_t width, float* y) {
    const int64_t row_bytes = (a.out + 7) / 8;
    for (int64_t n = 0; n < width; ++n) y[n] = 0.0f;
    const auto run = [&](auto together, int64_t i) {
        constexpr int N = together;
        Place<T> at[N];
        for (int j = 0; j < N; ++j) {
            const int64_t after = i + N + j < list.count ? i + N + j : i + j;
            at[j] = {a.bits + list.inputs[i + j] * row_bytes + first / 8, static_cast<const T*>(a.values) + starts[i + j],
                     starts[after] - starts[i + j]};
        }
        add<N, T>(at, list.factors + i, width, y);
        for (int j = 0; j < N; ++j) starts[i + j] = static_cast<int32_t>(at[j].values - static_cast<const T*>(a.values));
    };
    int64_t i = 0;
    for (; i + kAtOnce <= list.count; i += kAtOnce) run(std::integral_constant<int, kAtOnce>{}, i);
    for (; i < list.count; ++i) run(std::integral_constant<int, 1>{}, i);
    const float unit = a.scale ? kByteUnit : 1.0f;
    for (int64_t n = 0; n < width; ++n) {
        y[n] = y[n] * (a.scale ? unit * a.scale[first + n] : 1.0f) + (a.bias ? a.bias[first + n] : 0.0f);
    }
}

template <class T>
void run(const InputBits& a) {
    constexpr int64_t kUnit = 64;  // outputs: threads share no line of y, and a whole word of bits lies before each
    split((a.out + kUnit - 1) / kUnit, a.threads, a.rows * a.in * a.out, [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch, places;
        const int64_t last = end * kUnit < a.out ? end * kUnit : a.out;
        for (int64_t m = 0; m < a.rows; ++m) {
            const Active list = active(a.x + m * a.in, a.in, a.threshold ? a.threshold[m] : 0.0f, scratch);
            int32_t* starts = reinterpret_cast<int32_t*>(places.floats(list.count));
            for (int64_t i = 0; i < list.count; ++i) starts[i] = start(a, list.inputs[i], begin * kUnit);
            for (int64_t n = begin * kUnit; n < last; n += kPiece) {
                piece<T>(a, list, starts, n, n + kPiece < last ? kPiece : last - n, a.y + m * a.out + n);
            }
        }
    });
}

}  // namespace

void inbits(const InputBits& a) {
    if (a.stored == Stored::fp32) return run<float>(a);
    if (a.stored == Stored::bf16) return run<uint16_t>(a);
    run<int8_t>(a);
}

}  // namespace sparseworks::SW_ISA
