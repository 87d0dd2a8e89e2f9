// Attention over blocks, pages and token lists: arguments of the kernels. d is a multiple of 32 (Python pads it with zeros).
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

constexpr int64_t kPage = 64;    // tokens of a page
constexpr int64_t kBounds = 16;  // pages whose bounds lie side by side

// Row (batch, head, query block) keeps key blocks idx[ptr[row]:ptr[row + 1]]; rows are computed in `order`,
// which goes through the query heads of one key head before those of the next.
struct Prefill {
    const float *q, *k, *v;
    float *out, *lse;
    const int32_t *ptr, *idx, *order;
    int64_t batch, heads, kv_heads, queries, keys, d, block;
    bool causal;
    float scale;
    int threads;
};

// k (kv_heads, capacity, d, 64), v (kv_heads, capacity, 64, d), bounds (kv_heads, capacity / 16, 2, d, 16): largest, smallest.
struct Pages {
    const float *q, *k, *v, *bounds;
    float *out, *lse, *scores;  // scores (heads, capacity)
    uint8_t* chosen;            // (heads, capacity)
    int64_t heads, kv_heads, pages, capacity, tokens, d, top;
    float scale;
    int threads;
};

// List l (a head's, or a key head's) is idx[ptr[l]:ptr[l + 1]].
struct Tokens {
    const float *q, *k, *v;
    const int32_t *ptr, *idx;
    float *out, *lse;
    int64_t heads, kv_heads, lists, queries, tokens, d;
    float scale;
    int threads;
};

SW_KERNEL(prefill, Prefill)
SW_KERNEL(bound_pages, Pages)
SW_KERNEL(attend_pages, Pages)
SW_KERNEL(attend_tokens, Tokens)

}  // namespace sparseworks
