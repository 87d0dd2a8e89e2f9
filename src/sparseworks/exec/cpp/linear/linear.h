// What every kernel is given: raw pointers checked by Python, sizes, and how many threads to use.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// y (rows, out) = x (rows, in) W^T + bias; x, y, bias are float32, row-major; bias may be null.
struct Product {
    const float* x;
    float* y;
    const float* bias;
    int64_t rows, in, out;
    bool bf16;  // kept values are bfloat16 instead of float32
    int threads;
};

// Any support, cut into K-blocks and row blocks (format `tile`).
struct Tile : Product {
    const int32_t* ptr;
    const uint8_t* columns;
    const void* values;
    const uint8_t* row_of;
    int64_t k_block, row_block;
};

// Pairs of adjacent inputs as 16-bit fixed point, two in an entry, cut like `Tile` (format `pairs`): weight = value * scale[row].
// Inputs are rounded per token to whole numbers of at most `limit`; a token that is nowhere larger than kTiny counts as zero.
constexpr float kTiny = 1e-30f;

struct Pairs : Product {
    const int32_t* ptr;
    const uint8_t* columns;
    const int16_t* values;
    const uint8_t* row_of;
    const float* scale;
    int64_t limit, k_block, row_block;  // k_block in pairs
};

// `scale` (out) in what follows: null, or the values are int8 and weight = value * scale[row].

// `height` adjacent outputs share columns (format `panel`).
struct Panel : Product {
    const int32_t* ptr;
    const uint16_t* columns;
    const void* values;
    int64_t height, k_block;
    const float* scale;
};

// Rows padded to eight entries; without `ptr` every row has `slots` of them (formats `csr16`, `fanin`).
struct Csr : Product {
    const int32_t* ptr;
    const uint16_t* columns;
    const void* values;
    int64_t slots;
    const float* scale;
};

// Kept runs of 16 inputs, four bits a weight, two weights a byte: weight = scale (code - zero) of its run (format `groups4`).
struct Groups4 : Product {
    const int32_t* ptr;  // first run of an output
    const uint8_t* codes;
    const uint16_t* scale;  // fp16
    const uint8_t* zero;
    const void* columns;  // which run of inputs: 8-bit, or 16-bit where `wide`
    bool wide;
};

// One bit per entry; without `ptr` every row has `per_row` values (formats `bitmask`, `nm`).
struct Bitmask : Product {
    const int32_t* ptr;
    const uint8_t* bits;
    const void* values;
    int64_t row_bytes, per_row;
    const float* scale;
};

// Every row has the same number of entries, a multiple of four, in each segment of 256 columns (format `balanced`): entry e of
// segment s of row n lies at n * starts[segments] + starts[s] + e.
struct Balanced : Product {
    const int32_t* starts;
    const uint8_t* columns;
    const void* values;
    const float* scale;
};

// Every weight as int8, row-major, weight = value * scale[row]; rows of x are rounded as for `Pairs` (kernel `gemm-int8`).
struct Int8 : Product {
    const int8_t* weight;
    const float* scale;
    int64_t limit;
};

enum class Stored : int { fp32, bf16, int8 };

// Every weight, row-major; int8 rows have a scale each (kernels `gemv`).
struct Dense : Product {
    const void* weight;
    const float* scale;  // null unless int8
    Stored stored;
};

// Every weight, input-major (in, out): inputs with |x| <= threshold are skipped, each row of x its own (kernels `inmajor`).
struct InputMajor : Product {
    const void* weight;
    const float* scale;  // null unless int8
    Stored stored;
    const float* threshold;  // (rows), or null: only exact zeros are skipped
};

// One bit per entry, input-major (in, bytes), and the kept values of each input; skips as `InputMajor` does (kernels `inbits`).
struct InputBits : Product {
    const int32_t* ptr;  // first value of an input
    const uint8_t* bits;
    const void* values;
    const float* scale;  // null unless int8
    Stored stored;
    const float* threshold;  // (rows), or null: only exact zeros are skipped
};

// In every chunk of count * g outputs and block of m inputs, each of the `count` choices of n inputs serves g outputs (format `nmg`).
struct Nmg : Product {
    const uint8_t* choices;  // (count, n)
    const void* order;       // outputs of a chunk by choice: 8-bit up to 256 of them, else 16-bit
    const void* values;
    int64_t n, m, g, count;
};

// One matrix of a fused layer: `Pairs` without its input and output.
struct Matrix {
    int64_t in, out;
    const int32_t* ptr;
    const uint8_t* columns;
    const int16_t* values;
    const uint8_t* row_of;
    const float* scale;
    int64_t limit, k_block, row_block;
    const float* bias;
};

struct Norm {
    const float *weight, *bias;
    float eps;
};

// y = norm2(h + down act(up h)) with h = norm1(x + o attention(q x, k x, v x)); x and y (batch, tokens, up.in).
struct EncoderLayer {
    const float* x;
    float* y;
    const float* mask;  // null, or (batch, tokens): added to the scores of each key
    int64_t batch, tokens, heads;
    float scale;  // of the scores
    Matrix q, k, v, o, up, down;
    Norm norm1, norm2;
    int64_t activation;  // 0: GELU, 1: GELU by tanh, 2: ReLU
    int threads;
};

SW_KERNEL(tile, Tile)
SW_KERNEL(pairs, Pairs)
SW_KERNEL(panel, Panel)
SW_KERNEL(csr, Csr)
SW_KERNEL(segmented, Balanced)
SW_KERNEL(bitmask, Bitmask)
SW_KERNEL(groups4, Groups4)
SW_KERNEL(int8, Int8)
SW_KERNEL(encoder, EncoderLayer)
SW_KERNEL(gemv, Dense)
SW_KERNEL(inmajor, InputMajor)
SW_KERNEL(inbits, InputBits)
SW_KERNEL(nmg, Nmg)

}  // namespace sparseworks
