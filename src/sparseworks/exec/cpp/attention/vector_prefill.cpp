// Block-sparse attention with an online softmax (Dao 2023, arXiv 2307.08691): per query block one pass over its kept key blocks; the
// block of scores stays in L1.
#include <limits>

#include "tiles.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr float kNever = -1e30f;  // below every score, but finite: differences stay numbers
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// What a query block carries from key block to key block; scores in units of log 2.
struct Running {
    float *most, *sum, *factor;  // of each row
    float* q;                    // scaled
    float* scores;
    float* out;
    static int64_t floats(const Blocks& b, const Layout& l) { return up_to(b.tall, W) * 3 + b.tall * (2 * l.depth + l.width); }
    Running(float* at, const Blocks& b, const Layout& l) : most(at) {
        const int64_t rows = up_to(b.tall, W);
        sum = most + rows, factor = sum + rows, q = factor + rows;
        scores = q + b.tall * l.depth, out = scores + b.tall * l.width;
    }
};

// Scores to weights 2^(score - largest); `factor` is what earlier sums and outputs must be multiplied with.
void soften(const Score& t, const Running& w, int64_t width) {
    for (int64_t r = 0; r < t.rows; ++r) {
        float* s = w.scores + r * width;
        const int64_t n = t.visible(r), end = least(t.width(), up_to(t.visible(least(r + kRows, t.rows) - 1), W));
        Lanes high = all(w.most[r]);
        int64_t j = 0;
        for (; j + W <= n; j += W) high = greater(load(s + j), high);
        for (; j < end; j += W) {
            const Lanes v = first_lanes(load(s + j), n - j, all(kHidden));
            store(s + j, v);
            high = greater(v, high);
        }
        const float now = peak(high);
        w.factor[r] = w.most[r] - now;
        w.most[r] = now;
    }
    for (int64_t r = 0; r < t.rows; r += W) store(w.factor + r, power_of_two(load(w.factor + r)));
    for (int64_t r = 0; r < t.rows; ++r) {
        float* s = w.scores + r * width;
        const int64_t end = least(t.width(), up_to(t.visible(least(r + kRows, t.rows) - 1), W));
        const Lanes high = all(w.most[r]);
        Lanes total = zero();
        for (int64_t j = 0; j < end; j += W) {
            const Lanes p = power_of_two(load(s + j) - high);
            store(s + j, p);
            total += p;
        }
        w.sum[r] = w.sum[r] * w.factor[r] + sum(total);
    }
}

void begin(const Prefill& a, const Running& w, const float* q, int64_t rows, const Layout& l) {
    const Lanes scale = all(a.scale * kLog2E);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < a.n.d; c += W) {
            store(w.q + r * l.depth + c, load_first(q + r * a.q.token + c, a.n.d - c) * scale);
        }
    }
    std::memset(w.out, 0, rows * l.depth * sizeof(float));
    for (int64_t r = 0; r < up_to(rows, W); ++r) w.most[r] = kNever, w.sum[r] = 0.0f, w.factor[r] = 0.0f;
}

void finish(const Prefill& a, const Running& w, float* out, float* lse, int64_t rows, const Layout& l) {
    for (int64_t r = 0; r < rows; ++r) {
        const bool none = w.sum[r] == 0.0f;
        const Lanes share = all(none ? 0.0f : 1.0f / w.sum[r]);
        for (int64_t c = 0; c < a.n.d; c += W) {
            store_first(out + r * a.out.token + c, load(w.out + r * l.depth + c) * share, a.n.d - c);
        }
        lse[r] = none ? kHidden : w.most[r] * kLn2 + std::log(w.sum[r]);
    }
}

void query_block(const Prefill& a, const Layout& l, const Running& w, int64_t b, int64_t h, int64_t block, const float* keys,
                 const float* values) {
    const Sizes& n = a.n;
    Score t{block * a.blocks.tall, 0, 0, 0, a.causal};
    t.rows = least(a.blocks.tall, n.queries - t.query);
    begin(a, w, a.q.rows(b, h, t.query), t.rows, l);
    kept_blocks(a.blocks, l, h, block, [&](int64_t j) {
        t.key = j * a.blocks.wide;
        t.keys = least(a.blocks.wide, n.keys - t.key);
        scores(t, w.q, l.depth, keys + j * l.width * n.d, n.d, w.scores, l.width);
        soften(t, w, l.width);
        product<Start::scaled>({w.scores, l.width, 1}, t.rows, {values + t.key * l.depth, t.keys * kPanel, l.depth / kPanel}, w.out,
                               l.depth, w.factor,
                               [&](int64_t, int64_t r, int64_t rows) { return Range{0, t.visible(r + rows - 1)}; });
    });
    finish(a, w, a.out.rows(b, h, t.query), a.lse + (b * n.heads + h) * n.queries + t.query, t.rows, l);
}

}  // namespace

void prefill(const Prefill& a) {
    const Sizes& n = a.n;
    const Layout l(n, a.blocks);
    const int64_t group = n.heads / n.kv_heads, packed_keys = l.key_blocks * l.width * n.d;
    const auto memory = [](int64_t floats) {
        static thread_local Scratch scratch;
        return scratch.floats(floats);
    };
    teams(n.batch * n.kv_heads, a.threads, packed_keys + up_to(n.keys * l.depth, 16), Running::floats(a.blocks, l), memory,
          [&](int64_t unit, int64_t me, int64_t parts, float* keys, float* own) {
              const int64_t b = unit / n.kv_heads, g = unit % n.kv_heads;
              float* values = keys + packed_keys;
              for (int64_t j = me; j < l.key_blocks; j += parts) {
                  const int64_t key = j * a.blocks.wide, count = least(a.blocks.wide, n.keys - key);
                  pack_transposed(a.k.rows(b, g, key), a.k.token, count, n.d, keys + j * l.width * n.d);
                  pack_rows(a.v.rows(b, g, key), a.v.token, count, n.d, values + key * l.depth);
              }
              if (parts > 1) barrier();
              const Running w(own, a.blocks, l);
              for (int64_t h = g * group; h < (g + 1) * group; ++h) {
                  const Range share = query_share(a.blocks, l, h, me, parts);
                  for (int64_t i = share.from; i < share.to; ++i) query_block(a, l, w, b, h, i, keys, values);
              }
              if (parts > 1) barrier();
          });
}

}  // namespace sparseworks::SW_ISA
