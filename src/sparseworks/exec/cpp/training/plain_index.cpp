// Building the index of a support, in time proportional to its entries: a change of the support must cost no more than a few steps.
#include <algorithm>
#include <vector>

#include "training.h"

namespace sparseworks {

void transpose_order(const Rows& a, int32_t* ptr, int32_t* columns, int32_t* order) {
    std::fill(ptr, ptr + a.width + 1, 0);
    for (int32_t e = 0; e < a.ptr[a.rows]; ++e) ++ptr[a.columns[e] + 1];
    for (int64_t k = 0; k < a.width; ++k) ptr[k + 1] += ptr[k];
    std::vector<int32_t> next(ptr, ptr + a.width);
    for (int64_t n = 0; n < a.rows; ++n) {
        for (int32_t e = a.ptr[n]; e < a.ptr[n + 1]; ++e) {
            const int32_t at = next[a.columns[e]]++;
            columns[at] = static_cast<int32_t>(n);
            order[at] = e;
        }
    }
}

void cut_segments(const Rows& a, const Index& shape, uint8_t* columns, uint8_t* count, uint8_t* row_of, int32_t* first,
                  int32_t* order) {
    const int64_t k_blocks = (a.width + shape.k_block - 1) / shape.k_block;
    std::vector<int32_t> next(shape.row_block), end(shape.row_block);
    std::vector<int64_t> place(shape.k_block + 2);
    std::vector<uint8_t> sorted(shape.row_block);
    int32_t total = 0;
    for (int64_t top = 0; top < a.rows; top += shape.row_block) {
        const int64_t height = std::min(a.rows - top, shape.row_block);
        std::copy(a.ptr + top, a.ptr + top + height, next.begin());
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            const int64_t base = kb * shape.k_block;
            std::fill(place.begin(), place.end(), 0);
            for (int64_t r = 0; r < height; ++r) {
                end[r] = next[r];
                while (end[r] < a.ptr[top + r + 1] && a.columns[end[r]] < base + shape.k_block) ++end[r];
                ++place[shape.k_block - (end[r] - next[r]) + 1];
            }
            for (int64_t c = 0; c <= shape.k_block; ++c) place[c + 1] += place[c];
            for (int64_t r = 0; r < height; ++r) sorted[place[shape.k_block - (end[r] - next[r])]++] = static_cast<uint8_t>(r);
            *first++ = total;
            for (int64_t i = 0; i < height; ++i) {
                const int64_t r = sorted[i];
                *row_of++ = static_cast<uint8_t>(r);
                *count++ = static_cast<uint8_t>(end[r] - next[r]);
                for (int32_t e = next[r]; e < end[r]; ++e, ++total) {
                    columns[total] = static_cast<uint8_t>(a.columns[e] - base);
                    order[total] = e;
                }
                next[r] = end[r];
            }
        }
    }
    *first = total;
}

void uncut_segments(const Index& w, int32_t* ptr, int32_t* columns, int32_t* order) {
    const int64_t k_blocks = (w.width + w.k_block - 1) / w.k_block;
    // body(row, segment, base column) for all segments: those of a row come with ascending columns.
    const auto segments = [&](const auto& body) {
        int64_t s = 0;
        for (int64_t top = 0; top < w.rows; top += w.row_block) {
            const int64_t height = std::min(w.rows - top, w.row_block);
            for (int64_t kb = 0; kb < k_blocks; ++kb) {
                for (int64_t i = 0; i < height; ++i, ++s) body(top + w.row_of[s], s, kb * w.k_block);
            }
        }
    };
    std::fill(ptr, ptr + w.rows + 1, 0);
    segments([&](int64_t row, int64_t s, int64_t) { ptr[row + 1] += w.count[s]; });
    for (int64_t n = 0; n < w.rows; ++n) ptr[n + 1] += ptr[n];
    std::vector<int32_t> next(ptr, ptr + w.rows);
    int32_t e = 0;
    segments([&](int64_t row, int64_t s, int64_t base) {
        for (int64_t i = 0; i < w.count[s]; ++i, ++e) {
            columns[next[row]] = static_cast<int32_t>(base + w.columns[e]);
            order[next[row]++] = e;
        }
    });
}

void find_entries(const Rows& a, const Rows& b, int32_t* found) {
    for (int64_t n = 0; n < b.rows; ++n) {
        int32_t e = a.ptr[n];
        for (int32_t f = b.ptr[n]; f < b.ptr[n + 1]; ++f) {
            while (e < a.ptr[n + 1] && a.columns[e] < b.columns[f]) ++e;
            found[f] = e < a.ptr[n + 1] && a.columns[e] == b.columns[f] ? e : -1;
        }
    }
}

void relate_orders(const int32_t* first, const int32_t* middle, const int32_t* last, int64_t n, int32_t* result) {
    std::vector<int32_t> inverse(n);
    for (int64_t e = 0; e < n; ++e) inverse[first[e]] = static_cast<int32_t>(e);
    for (int64_t i = 0; i < n; ++i) result[i] = inverse[middle[last[i]]];
}

void trace_entries(const int32_t* before, const int32_t* found, const int32_t* order, int64_t n, int32_t* result) {
    for (int64_t i = 0; i < n; ++i) result[i] = found[order[i]] < 0 ? -1 : before[found[order[i]]];
}

}  // namespace sparseworks
