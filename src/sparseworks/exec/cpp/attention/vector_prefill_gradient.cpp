// The backward pass of block-sparse attention (Dao 2023, arXiv 2307.08691): weights are computed again from the saved log-sum, and
// only at the kept blocks.
#include "tiles.h"

namespace sparseworks::SW_ISA {
namespace {

// A query block's operands and results.
struct Strip {
    float *lse, *delta;  // of each row; lse in units of log 2
    float *q, *dout;     // in panels
    float *weights, *slopes;
    float* dq;
    static int64_t floats(const Blocks& b, const Layout& l) { return up_to(b.tall, W) * 2 + b.tall * (3 * l.depth + 2 * l.width); }
    Strip(float* at, const Blocks& b, const Layout& l) : lse(at) {
        const int64_t rows = up_to(b.tall, W);
        delta = lse + rows, q = delta + rows, dout = q + b.tall * l.depth;
        weights = dout + b.tall * l.depth, slopes = weights + b.tall * l.width, dq = slopes + b.tall * l.width;
    }
};

// A head of keys, packed for every use, and the sums of its gradients, [part][key][depth].
struct Keys {
    float *transposed, *rows, *values;
    float *dk, *dv;
    static int64_t floats(const Sizes& n, const Layout& l, int64_t parts) {
        return l.key_blocks * l.width * 2 * n.d + up_to(n.keys * l.depth, 16) * (1 + 2 * parts);
    }
    Keys(float* at, const Sizes& n, const Layout& l, int64_t parts) : transposed(at) {
        const int64_t size = up_to(n.keys * l.depth, 16);
        values = transposed + l.key_blocks * l.width * n.d, rows = values + l.key_blocks * l.width * n.d;
        dk = rows + size, dv = dk + parts * size;
    }
};

void begin(const PrefillGradient& a, const Layout& l, const Strip& w, const Score& t, int64_t b, int64_t h) {
    const int64_t d = a.n.d, at = (b * a.n.heads + h) * a.n.queries + t.query;
    const float *out = a.out.rows(b, h, t.query), *dout = a.dout.rows(b, h, t.query);
    for (int64_t r = 0; r < t.rows; ++r) {
        Lanes s = zero();
        for (int64_t c = 0; c < d; c += W) {
            s = multiply_add(load_first(out + r * a.out.token + c, d - c), load_first(dout + r * a.dout.token + c, d - c), s);
        }
        w.delta[r] = sum(s) - (a.dlse ? a.dlse[at + r] : 0.0f);
        w.lse[r] = a.lse[at + r] * kLog2E;
    }
    pack_rows(a.q.rows(b, h, t.query), a.q.token, t.rows, d, w.q);
    pack_rows(dout, a.dout.token, t.rows, d, w.dout);
    std::memset(w.dq, 0, t.rows * l.depth * sizeof(float));
}

// Scores and gradients of weights to weights and gradients of scores; 0 where nothing is visible.
void differentiate(const PrefillGradient& a, const Strip& w, const Score& t, int64_t width) {
    const Lanes scale = all(a.scale * kLog2E);
    for (int64_t r = 0; r < t.rows; ++r) {
        float *weights = w.weights + r * width, *slopes = w.slopes + r * width;
        const Lanes lse = all(w.lse[r]), delta = all(w.delta[r]);
        const int64_t n = t.visible(r);
        for (int64_t j = 0; j < t.width(); j += W) {
            if (j >= n) {
                store(weights + j, zero()), store(slopes + j, zero());
                continue;
            }
            Lanes p = power_of_two(load(weights + j) * scale - lse), slope = p * (load(slopes + j) - delta);
            if (j + W > n) p = first_lanes(p, n - j, zero()), slope = first_lanes(slope, n - j, zero());
            store(weights + j, p), store(slopes + j, slope);
        }
    }
}

void query_block(const PrefillGradient& a, const Layout& l, const Strip& w, const Keys& k, float* dk, float* dv, int64_t b,
                 int64_t h, int64_t block) {
    const Sizes& n = a.n;
    const int64_t panels = l.depth / kPanel, d = n.d;
    Score t{block * a.blocks.tall, 0, 0, 0, a.causal};
    t.rows = least(a.blocks.tall, n.queries - t.query);
    begin(a, l, w, t, b, h);
    kept_blocks(a.blocks, l, h, block, [&](int64_t j) {
        t.key = j * a.blocks.wide;
        t.keys = least(a.blocks.wide, n.keys - t.key);
        const int64_t at = t.key * l.depth, stride = t.rows * kPanel;
        scores(t, a.q.rows(b, h, t.query), a.q.token, k.transposed + j * l.width * d, d, w.weights, l.width);
        scores(t, a.dout.rows(b, h, t.query), a.dout.token, k.values + j * l.width * d, d, w.slopes, l.width);
        differentiate(a, w, t, l.width);
        product<Start::sum>({w.slopes, l.width, 1}, t.rows, {k.rows + at, t.keys * kPanel, panels}, w.dq, l.depth, nullptr,
                            [&](int64_t, int64_t r, int64_t rows) { return Range{0, t.visible(r + rows - 1)}; });
        const auto seen = [&](int64_t, int64_t column, int64_t) { return Range{t.first_row(column), t.rows}; };
        product<Start::sum>({w.weights, 1, l.width}, t.keys, {w.dout, stride, panels}, dv + at, l.depth, nullptr, seen);
        product<Start::sum>({w.slopes, 1, l.width}, t.keys, {w.q, stride, panels}, dk + at, l.depth, nullptr, seen);
    });
    float* dq = a.dq.rows(b, h, t.query);
    for (int64_t r = 0; r < t.rows; ++r) {
        for (int64_t c = 0; c < d; c += W) {
            store_first(dq + r * a.dq.token + c, load(w.dq + r * l.depth + c) * a.scale, d - c);
        }
    }
}

// The sum over parts of one row of a gradient, times a factor.
void write(const float* sums, int64_t part, int64_t parts, int64_t d, float factor, float* to) {
    for (int64_t c = 0; c < d; c += W) {
        Lanes s = load(sums + c);
        for (int64_t p = 1; p < parts; ++p) s += load(sums + p * part + c);
        store_first(to + c, s * factor, d - c);
    }
}

}  // namespace

void prefill_gradient(const PrefillGradient& a) {
    const Sizes& n = a.n;
    const Layout l(n, a.blocks);
    const int64_t group = n.heads / n.kv_heads, size = up_to(n.keys * l.depth, 16), units = n.batch * n.kv_heads;
    const int64_t most_parts = units >= 2 * a.threads ? 1 : a.threads;  // as in `teams`
    const auto memory = [](int64_t floats) {
        static thread_local Scratch scratch;
        return scratch.floats(floats);
    };
    teams(units, a.threads, Keys::floats(n, l, most_parts), Strip::floats(a.blocks, l), memory,
          [&](int64_t unit, int64_t me, int64_t parts, float* shared, float* own) {
              const int64_t b = unit / n.kv_heads, g = unit % n.kv_heads;
              const Keys k(shared, n, l, parts);
              for (int64_t j = me; j < l.key_blocks; j += parts) {
                  const int64_t key = j * a.blocks.wide, count = least(a.blocks.wide, n.keys - key);
                  pack_transposed(a.k.rows(b, g, key), a.k.token, count, n.d, k.transposed + j * l.width * n.d);
                  pack_transposed(a.v.rows(b, g, key), a.v.token, count, n.d, k.values + j * l.width * n.d);
                  pack_rows(a.k.rows(b, g, key), a.k.token, count, n.d, k.rows + key * l.depth);
              }
              float *dk = k.dk + me * size, *dv = k.dv + me * size;
              std::memset(dk, 0, size * sizeof(float));
              std::memset(dv, 0, size * sizeof(float));
              if (parts > 1) barrier();
              const Strip w(own, a.blocks, l);
              for (int64_t h = g * group; h < (g + 1) * group; ++h) {
                  const Range share = query_share(a.blocks, l, h, me, parts);
                  for (int64_t i = share.from; i < share.to; ++i) query_block(a, l, w, k, dk, dv, b, h, i);
              }
              if (parts > 1) barrier();
              for (int64_t key = n.keys * me / parts; key < n.keys * (me + 1) / parts; ++key) {
                  write(k.dk + key * l.depth, size, parts, n.d, a.scale, a.dk.rows(b, g, key));
                  write(k.dv + key * l.depth, size, parts, n.d, 1.0f, a.dv.rows(b, g, key));
              }
              if (parts > 1) barrier();
          });
}

}  // namespace sparseworks::SW_ISA
