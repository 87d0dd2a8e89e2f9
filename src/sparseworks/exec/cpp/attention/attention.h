// Attention over chosen keys: blocks of a long prompt, forward and backward; pages of a cache, or tokens of one, for one query.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// A tensor (batch, heads, tokens, d) by its strides; the last is 1.
struct View {
    float* data;
    int64_t batch, head, token;
    float* rows(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * token; }
};

// Which key blocks each query block attends to: of row r = head * query blocks + block, columns[ptr[r] .. ptr[r + 1]). `ptr` may be
// null (all).
struct Blocks {
    const int32_t *ptr, *columns;
    int64_t heads;  // 1: the same for all heads
    int64_t tall, wide;  // queries and keys of a block
};

struct Sizes {
    int64_t batch, heads, kv_heads, queries, keys, d;
};

// out = softmax(scale q k^T) v and lse = log sum e^(scale q k^T), over the kept blocks. `causal`: query i sees keys 0 .. i.
struct Prefill {
    View q, k, v, out;
    float* lse;  // (batch, heads, queries)
    Blocks blocks;
    Sizes n;
    bool causal;
    float scale;
    int threads;
};

// Gradients of out and of lse (may be null) to q, k, v.
struct PrefillGradient {
    View q, k, v, out, dout, dq, dk, dv;
    const float *lse, *dlse;
    Blocks blocks;
    Sizes n;
    bool causal;
    float scale;
    int threads;
};

// Which keys each block of queries attends to: of row r = (sequence * heads + head) * row blocks + row, the units of `wide` keys
// columns[ptr[r] .. ptr[r + 1]), ascending. Rows lie at multiples of `tall` positions, so the first may be shorter.
struct Columns {
    View q, k, v, out;
    float* lse;  // (batch, heads, queries)
    Blocks lists;     // its heads: 1, those of the keys, or all
    int64_t batches;  // with lists of their own: 1, or all
    int64_t offset;   // position of the first query
    Sizes n;
    bool causal;
    float scale;
    int threads;
};

// out[r][j] = max over the queries of row r that see key places[r][j] of scale q k^T; rows as in `Columns`, of all heads.
struct Peaks {
    View q, k;
    const int32_t* places;
    float* out;
    int64_t tall, count;
    int64_t offset;
    Sizes n;
    bool causal;
    float scale;
    int threads;
};

constexpr int64_t kPage = 64;    // tokens of a page
constexpr int64_t kBounds = 16;  // pages whose bounds lie side by side

// k (kv_heads, capacity, d, 64), v (kv_heads, capacity, 64, d), bounds (kv_heads, capacity / 16, 2, d, 16): largest, smallest.
struct Pages {
    const float *q, *k, *v, *bounds;
    float *out, *lse, *scores;  // scores (heads, capacity)
    uint8_t* chosen;            // (heads, capacity)
    int64_t heads, kv_heads, pages, capacity, tokens, d, top;
    float scale;
    int threads;
};

// List l of `heads` (or of one head, where there are no more) is idx[begin[l]:end[l]], or without idx the tokens begin[l] .. end[l]
// themselves. Keys and values of a key head begin `stride` floats after those of the one before.
struct Tokens {
    const float *q, *k, *v;
    const int32_t *begin, *end, *idx;
    float *out, *lse;
    int64_t heads, kv_heads, lists, queries, stride, d;
    float scale;
    int threads;
};

// Keys and values of segments as bitmaps, several pieces of tokens in each: `pieces` holds of every piece the addresses of bits, values
// and pointers of K (tokens, d) and of V' (d, tokens), as `exec.formats.bitmask` lays them out, and the number of tokens.
struct Bitmaps {
    const float* q;         // (segments, queries, d)
    const int64_t* pieces;  // (pieces, 7)
    const int32_t* first;   // (segments + 1): pieces of a segment
    float *out, *lse;
    int64_t segments, queries, d;
    bool half;  // bfloat16
    float scale;
    int threads;
};

// idx[r][0 .. counts[r]): the places of the keep[r] largest of row r, ascending; of those that tie the first. Infinite scores are among
// them in any case, scores of -inf never.
struct Best {
    const float* scores;  // (rows, n)
    const int32_t* keep;
    int32_t *idx, *counts;  // (rows, n), (rows)
    int64_t rows, n;
    int threads;
};

// The largest limit that entries of a weight of `keep` in all reach, -inf where there is not so much.
struct Cut {
    const float* scores;
    const int32_t* weight;
    float* limit;
    int64_t n, keep;
};

// The next token of `batch` sequences: its q and k are rotated by `angles`, k and v are written behind the `tokens` that `keys` and
// `values` (batch, kv_heads, capacity, width) hold, and q attends to all of them. q (batch, heads, d), k and v (batch, kv_heads, d).
struct Next {
    const float *q, *k, *v;
    const float *cos, *sin;  // (batch or 1, d), the second half for x_{i + d/2}; null: not rotated
    const float* mask;       // (batch, tokens + 1), added to the scores; may be null
    void *keys, *values;     // float32, or bfloat16
    float* out;              // (batch, heads, d)
    int64_t batch, heads, kv_heads, tokens, capacity, d, width, angles;  // angles: 1 for all, or one a sequence
    bool half;
    float scale;
    int threads;
};

SW_KERNEL(prefill, Prefill)
SW_KERNEL(prefill_gradient, PrefillGradient)
SW_KERNEL(prefill_columns, Columns)
SW_KERNEL(peaks, Peaks)
SW_KERNEL(bound_pages, Pages)
SW_KERNEL(attend_pages, Pages)
SW_KERNEL(attend_tokens, Tokens)
SW_KERNEL(attend_bitmaps, Bitmaps)
SW_KERNEL(best, Best)
SW_KERNEL(cut, Cut)
SW_KERNEL(attend_next, Next)

}  // namespace sparseworks
