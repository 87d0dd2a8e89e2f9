// Plain C++: what runs on processors without AVX2. Correct and simple; the loops over x rows vectorise where the compiler can.
#include <vector>

#include "../parallel.h"
#include "plain_rounding.h"

namespace sparseworks::portable {
namespace {

void start(const Product& a, int64_t n) {
    for (int64_t m = 0; m < a.rows; ++m) a.y[m * a.out + n] = a.bias ? a.bias[n] : 0.0f;
}

void add(const Product& a, int64_t n, int64_t k, float w) {
    for (int64_t m = 0; m < a.rows; ++m) a.y[m * a.out + n] += w * a.x[m * a.in + k];
}

}  // namespace

void tile(const Tile& a) {
    const int64_t k_blocks = (a.in + a.k_block - 1) / a.k_block;
    const int64_t blocks = (a.out + a.row_block - 1) / a.row_block;
    split(blocks, a.threads, a.rows * a.ptr[a.out * k_blocks], [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = b * a.row_block;
            const int64_t height = a.out - first < a.row_block ? a.out - first : a.row_block;
            for (int64_t r = 0; r < height; ++r) start(a, first + r);
            for (int64_t kb = 0; kb < k_blocks; ++kb) {
                for (int64_t i = 0; i < height; ++i) {
                    const int64_t s = first * k_blocks + kb * height + i;
                    for (int64_t e = a.ptr[s]; e < a.ptr[s + 1]; ++e) {
                        add(a, first + a.row_of[s], kb * a.k_block + a.columns[e], widen(a.values, a.bf16, e));
                    }
                }
            }
        }
    });
}

void pairs(const Pairs& a) {
    const int64_t k_blocks = (a.in / 2 + a.k_block - 1) / a.k_block;
    split(a.rows, a.threads, a.rows * a.ptr[a.out * k_blocks], [&](int64_t begin, int64_t end) {
        std::vector<int64_t> rounded(a.in);
        for (int64_t m = begin; m < end; ++m) {
            const float scale = round_row(a.x + m * a.in, a.in, a.limit, rounded.data());
            for (int64_t first = 0; first < a.out; first += a.row_block) {
                const int64_t height = std::min(a.out - first, a.row_block);
                std::vector<int64_t> sum(height, 0);
                for (int64_t kb = 0; kb < k_blocks; ++kb) {
                    for (int64_t i = 0; i < height; ++i) {
                        const int64_t s = first * k_blocks + kb * height + i;
                        for (int64_t e = a.ptr[s]; e < a.ptr[s + 1]; ++e) {
                            const int64_t k = 2 * (kb * a.k_block + a.columns[e]);
                            sum[a.row_of[s]] += a.values[2 * e] * rounded[k] + a.values[2 * e + 1] * rounded[k + 1];
                        }
                    }
                }
                for (int64_t r = 0; r < height; ++r) {
                    a.y[m * a.out + first + r] = static_cast<float>(sum[r]) * scale * a.scale[first + r] +
                                                 (a.bias ? a.bias[first + r] : 0.0f);
                }
            }
        }
    });
}

void panel(const Panel& a) {
    const int64_t panels = (a.out + a.height - 1) / a.height;
    const int64_t k_blocks = (a.in + a.k_block - 1) / a.k_block;
    split(panels, a.threads, a.rows * a.height * a.ptr[panels * k_blocks], [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            const int64_t first = p * a.height;
            const int64_t height = a.out - first < a.height ? a.out - first : a.height;
            for (int64_t r = 0; r < height; ++r) start(a, first + r);
            for (int64_t kb = 0; kb < k_blocks; ++kb) {
                for (int64_t e = a.ptr[kb * panels + p]; e < a.ptr[kb * panels + p + 1]; ++e) {
                    for (int64_t r = 0; r < height; ++r) {
                        add(a, first + r, a.columns[e], weight_at(a, e * a.height + r, first + r));
                    }
                }
            }
        }
    });
}

void csr(const Csr& a) {
    split(a.out, a.threads, a.rows * a.out * 8, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            start(a, n);
            const int64_t from = a.ptr ? a.ptr[n] : n * a.slots, to = a.ptr ? a.ptr[n + 1] : from + a.slots;
            for (int64_t e = from; e < to; ++e) add(a, n, a.columns[e], weight_at(a, e, n));
        }
    });
}

void segmented(const Balanced& a) {
    const int64_t segments = (a.in + 255) / 256, per_row = a.starts[segments];
    split(a.out, a.threads, a.rows * a.out * per_row, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            start(a, n);
            for (int64_t s = 0; s < segments; ++s) {
                for (int64_t e = n * per_row + a.starts[s]; e < n * per_row + a.starts[s + 1]; ++e) {
                    add(a, n, 256 * s + a.columns[e], weight_at(a, e, n));
                }
            }
        }
    });
}

void bitmask(const Bitmask& a) {
    split(a.out, a.threads, a.rows * a.out * a.row_bytes, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            start(a, n);
            int64_t e = a.ptr ? a.ptr[n] : n * a.per_row;
            const uint8_t* bits = a.bits + n * a.row_bytes;
            for (int64_t k = 0; k < a.in; ++k) {
                if (bits[k / 8] >> (k % 8) & 1) add(a, n, k, weight_at(a, e++, n));
            }
        }
    });
}

}  // namespace sparseworks::portable
