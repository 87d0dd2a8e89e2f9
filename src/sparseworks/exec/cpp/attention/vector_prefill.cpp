// Block-sparse attention with an online softmax (Dao 2023, arXiv 2307.08691): per query block one pass over its kept key blocks; the
// block of scores stays in L1.
#include "flash.h"

namespace sparseworks::SW_ISA {
namespace {

void query_block(const Prefill& a, const Layout& l, const Running& w, int64_t b, int64_t h, int64_t block, const float* keys,
                 const float* values) {
    const Sizes& n = a.n;
    Score t{block * a.blocks.tall, 0, 0, 0, a.causal};
    t.rows = least(a.blocks.tall, n.queries - t.query);
    begin(w, a.q.rows(b, h, t.query), a.q.token, t.rows, n.d, a.scale);
    kept_blocks(a.blocks, l, h, block, [&](int64_t j) {
        t.key = j * a.blocks.wide;
        t.keys = least(a.blocks.wide, n.keys - t.key);
        attend_block(t, w, keys + j * l.width * n.d, values + t.key * l.depth, n.d);
    });
    finish(w, a.out.rows(b, h, t.query), a.out.token, a.lse + (b * n.heads + h) * n.queries + t.query, t.rows, n.d);
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
    teams(n.batch * n.kv_heads, a.threads, packed_keys + up_to(n.keys * l.depth, 16), Running::floats(a.blocks.tall, l.depth, l.width), memory,
          [&](int64_t unit, int64_t me, int64_t parts, float* keys, float* own) {
              const int64_t b = unit / n.kv_heads, g = unit % n.kv_heads;
              float* values = keys + packed_keys;
              for (int64_t j = me; j < l.key_blocks; j += parts) {
                  const int64_t key = j * a.blocks.wide, count = least(a.blocks.wide, n.keys - key);
                  pack_transposed(a.k.rows(b, g, key), a.k.token, count, n.d, keys + j * l.width * n.d);
                  pack_rows(a.v.rows(b, g, key), a.v.token, count, n.d, values + key * l.depth);
              }
              if (parts > 1) barrier();
              const Running w(own, a.blocks.tall, l.depth, l.width);
              for (int64_t h = g * group; h < (g + 1) * group; ++h) {
                  const Range share = query_share(a.blocks, l, h, me, parts);
                  for (int64_t i = share.from; i < share.to; ++i) query_block(a, l, w, b, h, i, keys, values);
              }
              if (parts > 1) barrier();
          });
}

}  // namespace sparseworks::SW_ISA
