// Drop-and-grow on an index as it lies, cell by cell: nothing is sorted but what grows, and most memory is read and written in order.
#include <algorithm>
#include <vector>

#include "training.h"

namespace sparseworks {
namespace {

struct Place {
    int32_t row, column;
};

// What grows, by segments (row after row, K-blocks within), columns rising in each.
struct Grown {
    std::vector<int32_t> first;    // of each segment, and the total
    std::vector<int32_t> which;    // of the positions that were given
    std::vector<uint8_t> columns;  // within the K-block
    bool distinct = true;
};

Grown by_segments(const std::vector<Place>& places, const Index& shape) {
    const auto k_block = static_cast<int32_t>(shape.k_block), k_blocks = static_cast<int32_t>((shape.width + k_block - 1) / k_block);
    const auto segment = [&](const Place& p) { return static_cast<int64_t>(p.row) * k_blocks + p.column / k_block; };
    const int64_t n = static_cast<int64_t>(places.size()), segments = shape.rows * k_blocks;
    Grown sorted;
    sorted.first.assign(segments + 1, 0), sorted.which.resize(n), sorted.columns.resize(n);
    for (const Place& p : places) ++sorted.first[segment(p) + 1];
    for (int64_t s = 0; s < segments; ++s) sorted.first[s + 1] += sorted.first[s];
    std::vector<int32_t> end(sorted.first.begin(), sorted.first.end() - 1);
    for (int64_t i = 0; i < n; ++i) {  // into its place among the few of its segment
        const int64_t s = segment(places[i]);
        const auto column = static_cast<uint8_t>(places[i].column % k_block);
        int32_t to = end[s]++;
        for (; to > sorted.first[s] && sorted.columns[to - 1] > column; --to) {
            sorted.columns[to] = sorted.columns[to - 1], sorted.which[to] = sorted.which[to - 1];
        }
        sorted.columns[to] = column, sorted.which[to] = static_cast<int32_t>(i);
        if (to > sorted.first[s] && sorted.columns[to - 1] == column) sorted.distinct = false;
    }
    return sorted;
}

// The buffers of an index that is being written.
struct Written {
    uint8_t *columns, *count, *row_of;
    int32_t* first;
    int64_t entries;  // room in columns
};

// What stays of the rows of a cell, in the order in which they lay.
struct Cell {
    std::vector<uint8_t> columns;
    std::vector<int32_t> from;         // what `source` says of each entry
    std::vector<int32_t> first, size;  // of each row: its first entry, and how many there will be with those that grow

    explicit Cell(const Index& w) : columns(w.row_block * w.k_block + 1), from(columns.size()), first(w.row_block), size(w.row_block) {}
};

// Writes the new index. `source(e)`: what to say of the old entry e, negative if it is dropped. Of every new entry e is told
// `stays(e, source)` or `grows(e, which)`.
template <class Source, class Stays, class Grows>
bool merge(const Index& old, const Grown& grown, const Written& out, const Source& source, const Stays& stays, const Grows& grows) {
    const int64_t k_blocks = (old.width + old.k_block - 1) / old.k_block;
    Cell cell(old);
    std::vector<int32_t> room(old.k_block + 2);
    std::vector<uint8_t> sorted(old.row_block);
    int64_t segment = 0, written = 0;
    int32_t *first = out.first, e = 0, total = 0;
    for (int64_t top = 0; top < old.rows; top += old.row_block) {
        const int64_t height = std::min(old.rows - top, old.row_block);
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            const auto growing = [&](int64_t r) { return &grown.first[(top + r) * k_blocks + kb]; };
            std::fill(room.begin(), room.end(), 0);
            int32_t kept = 0;
            for (int64_t i = 0; i < height; ++i, ++segment) {
                const uint8_t r = old.row_of[segment];
                cell.first[r] = kept;
                for (const int32_t last = e + old.count[segment]; e < last; ++e) {  // without a branch: what drops is overwritten
                    cell.columns[kept] = old.columns[e], cell.from[kept] = source(e);
                    kept += cell.from[kept] >= 0;
                }
                cell.size[r] = kept - cell.first[r] + growing(r)[1] - growing(r)[0];
                if (cell.size[r] > old.k_block) return false;
                ++room[old.k_block - cell.size[r] + 1];
            }
            for (int64_t c = 0; c <= old.k_block; ++c) room[c + 1] += room[c];
            for (int64_t r = 0; r < height; ++r) sorted[room[old.k_block - cell.size[r]]++] = static_cast<uint8_t>(r);
            *first++ = total;
            for (int64_t i = 0; i < height; ++i, ++written) {
                const uint8_t r = sorted[i];
                const int32_t size = cell.size[r];
                if (total + size > out.entries) return false;
                out.row_of[written] = r, out.count[written] = static_cast<uint8_t>(size);
                int32_t at = cell.first[r];
                const int32_t growth = growing(r)[1] - growing(r)[0], last = at + size - growth;
                for (int32_t g = growing(r)[0]; g < growing(r)[1]; ++g) {
                    const uint8_t column = grown.columns[g];
                    for (; at < last && cell.columns[at] < column; ++at) {
                        out.columns[total] = cell.columns[at];
                        stays(total++, cell.from[at]);
                    }
                    if (at < last && cell.columns[at] == column) return false;
                    out.columns[total] = column;
                    grows(total++, grown.which[g]);
                }
                for (; at < last; ++at) {
                    out.columns[total] = cell.columns[at];
                    stays(total++, cell.from[at]);
                }
            }
        }
    }
    *first = total;
    return total == out.entries;
}

Written written(const Index& w, int64_t entries) {
    return {const_cast<uint8_t*>(w.columns), const_cast<uint8_t*>(w.count), const_cast<uint8_t*>(w.row_of), const_cast<int32_t*>(w.first),
            entries};
}

}  // namespace

bool exchange_entries(const Exchange& a) {
    const int64_t width = a.forward.width, size = a.forward.rows * width;
    std::vector<Place> places(a.growing), turned(a.growing);
    for (int64_t i = 0; i < a.growing; ++i) {
        if (a.grown[i] < 0 || a.grown[i] >= size) return false;
        const auto row = static_cast<int32_t>(a.grown[i] / width), column = static_cast<int32_t>(a.grown[i] - row * width);
        places[i] = {row, column}, turned[i] = {column, row};
    }
    const Grown grown = by_segments(places, a.forward);
    if (!grown.distinct) return false;
    std::vector<int32_t> now(a.entries, -1), grown_at(a.growing);  // where old entries, and what grows, come to lie
    const bool fits = merge(
        a.forward, grown, written(a.new_forward, a.new_entries), [&](int32_t e) { return a.kept[e] ? e : -1; },
        [&](int32_t e, int32_t from) { a.source[e] = from, now[from] = e; },
        [&](int32_t e, int32_t which) { a.source[e] = -1, grown_at[which] = e; });
    return fits && merge(
                       a.backward, by_segments(turned, a.backward), written(a.new_backward, a.new_entries),
                       [&](int32_t e) { return now[a.order[e]]; }, [&](int32_t e, int32_t from) { a.new_order[e] = from; },
                       [&](int32_t e, int32_t which) { a.new_order[e] = grown_at[which]; });
}

void move_values(const float* from, const int32_t* source, float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const float value = from[std::max(source[i], 0)];
        to[i] = source[i] < 0 ? 0.0f : value;
    }
}

}  // namespace sparseworks
