// Attention over kept blocks (online softmax, one block of queries at a time): keys are transposed once, so that both products
// broadcast a row's number and multiply contiguous lanes, in register tiles of six rows by two vectors.
#include "../simd.h"
#include "attention.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int kRows = 6;
constexpr float kNothing = -HUGE_VALF;

thread_local Scratch scratch, key_scratch;

// to (R, cols) = to * scale + from (R, inner) times right (inner, cols); without `scale`, to is overwritten.
template <int R>
SW_INLINE void product(const float* from, int64_t from_stride, const float* right, int64_t cols, int64_t inner,
                       const float* scale, float* to) {
    for (int64_t n = 0; n < cols; n += 2 * W) {
        Lanes a[R], b[R];
        each<R>([&](auto r) {
            a[r] = scale ? load(to + r * cols + n) * scale[r] : zero();
            b[r] = scale ? load(to + r * cols + n + W) * scale[r] : zero();
        });
        const float* row = right + n;
        for (int64_t c = 0; c < inner; ++c, row += cols) {
            const Lanes x = load(row), y = load(row + W);
            each<R>([&](auto r) {
                const Lanes f = all(from[r * from_stride + c]);
                a[r] = multiply_add(f, x, a[r]);
                b[r] = multiply_add(f, y, b[r]);
            });
        }
        each<R>([&](auto r) {
            store(to + r * cols + n, a[r]);
            store(to + r * cols + n + W, b[r]);
        });
    }
}

void products(int64_t rows, const float* from, int64_t from_stride, const float* right, int64_t cols, int64_t inner,
              const float* scale, float* to) {
    for (int64_t r = 0; r < rows; r += kRows) {
        const float *f = from + r * from_stride, *s = scale ? scale + r : nullptr;
        float* t = to + r * cols;
        switch (rows - r < kRows ? rows - r : kRows) {
            case 1: product<1>(f, from_stride, right, cols, inner, s, t); break;
            case 2: product<2>(f, from_stride, right, cols, inner, s, t); break;
            case 3: product<3>(f, from_stride, right, cols, inner, s, t); break;
            case 4: product<4>(f, from_stride, right, cols, inner, s, t); break;
            case 5: product<5>(f, from_stride, right, cols, inner, s, t); break;
            default: product<kRows>(f, from_stride, right, cols, inner, s, t);
        }
    }
}

// What a block of queries carries from one block of keys to the next.
struct State {
    float *q, *scores, *out, *most, *total, *shrink;  // total: W partial sums a row

    explicit State(const Prefill& a) {
        const int64_t b = a.block;
        q = scratch.floats(b * (2 * a.d + b + 2 + W));
        scores = q + b * a.d;
        out = scores + b * b;
        most = out + b * a.d;
        shrink = most + b;
        total = shrink + b;
    }
    void begin(const Prefill& a, const float* from, int64_t rows) {
        for (int64_t i = 0; i < rows * a.d; ++i) q[i] = from[i] * a.scale, out[i] = 0;
        for (int64_t r = 0; r < rows; ++r) most[r] = kNothing;
        for (int64_t i = 0; i < rows * W; ++i) total[i] = 0;
    }
};

// Scores become weights e^(s - m); sums and outputs of earlier blocks are to shrink by e^(m before - m).
void soften(const Prefill& a, State& s, int64_t rows, int64_t cols, bool diagonal) {
    for (int64_t r = 0; r < rows; ++r) {
        float* score = s.scores + r * a.block;
        const int64_t seen = diagonal && r + 1 < cols ? r + 1 : cols;
        for (int64_t n = seen; n < a.block; ++n) score[n] = kNothing;
        Lanes high = load(score);
        for (int64_t n = W; n < a.block; n += W) high = greater(high, load(score + n));
        const float before = s.most[r], here = largest(high), most = here > before ? here : before;
        s.shrink[r] = most == before ? 1.0f : exponential(all(before - most))[0];
        s.most[r] = most;
        const Lanes shift = all(most == kNothing ? 0.0f : most);
        Lanes sums = load(s.total + r * W) * s.shrink[r];
        for (int64_t n = 0; n < a.block; n += W) {
            const Lanes p = exponential(load(score + n) - shift);
            store(score + n, p);
            sums += p;
        }
        store(s.total + r * W, sums);
    }
}

void finish(const Prefill& a, const State& s, int64_t rows, float* out, float* lse) {
    for (int64_t r = 0; r < rows; ++r) {
        const float total = sum(load(s.total + r * W)), share = total != 0 ? 1 / total : 0.0f;
        lse[r] = total != 0 ? s.most[r] + std::log(total) : kNothing;
        for (int64_t c = 0; c < a.d; c += W) store(out + r * a.d + c, load(s.out + r * a.d + c) * share);
    }
}

void query_block(const Prefill& a, const float* transposed, int64_t row) {
    const int64_t blocks = (a.queries + a.block - 1) / a.block;
    const int64_t head = row / blocks, i = row % blocks, first = i * a.block;
    const int64_t kv = head / a.heads * a.kv_heads + head % a.heads / (a.heads / a.kv_heads);
    const int64_t rows = a.queries - first < a.block ? a.queries - first : a.block;
    State s(a);
    s.begin(a, a.q + (head * a.queries + first) * a.d, rows);
    for (int32_t e = a.ptr[row]; e < a.ptr[row + 1]; ++e) {
        const int64_t j = a.idx[e], start = j * a.block, left = a.keys - start, cols = left < a.block ? left : a.block;
        products(rows, s.q, a.d, transposed + j * a.d * a.block, a.block, a.d, nullptr, s.scores);
        soften(a, s, rows, cols, a.causal && i == j);
        products(rows, s.scores, a.block, a.v + (kv * a.keys + start) * a.d, a.d, cols, s.shrink, s.out);
    }
    finish(a, s, rows, a.out + (head * a.queries + first) * a.d, a.lse + head * a.queries + first);
}

void transpose_keys(const Prefill& a, int64_t kv, int64_t j, float* to) {
    const int64_t start = j * a.block;
    const int64_t rows = a.keys - start < a.block ? a.keys - start : a.block;
    const float* from = a.k + (kv * a.keys + start) * a.d;
    for (int64_t c = 0; c < a.d; c += W) {
        for (int64_t r = 0; r < a.block; r += W) {
            transpose(from + r * a.d + c, a.d, rows - r, W, to + c * a.block + r, a.block, W, W);
        }
    }
}

}  // namespace

void prefill(const Prefill& a) {
    const int64_t blocks = (a.queries + a.block - 1) / a.block, key_blocks = (a.keys + a.block - 1) / a.block;
    const int64_t rows = a.heads / a.kv_heads * blocks, size = a.d * a.block;
    float* transposed = key_scratch.floats(key_blocks * size);  // of one key head, and kept: fresh memory costs page faults
    for (int64_t kv = 0; kv < a.batch * a.kv_heads; ++kv) {
        dynamic(key_blocks, a.threads, [&](int64_t j) { transpose_keys(a, kv, j, transposed + j * size); });
        dynamic(rows, a.threads, [&](int64_t i) { query_block(a, transposed, a.order[kv * rows + i]); });
    }
}

}  // namespace sparseworks::SW_ISA
