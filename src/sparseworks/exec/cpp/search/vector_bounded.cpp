// Document at a time, skipping what bounds prove cannot be among the best: MaxScore over whole lists (Turtle and Flood, 1995),
// Block-Max WAND over blocks of a list (Ding and Suel, 2011). Weights and values are not negative.
#include <algorithm>
#include <vector>

#include "../best.h"
#include "search.h"

namespace sparseworks::SW_ISA {
namespace {

// Templates over types of the library would be merged by the linker with copies for other instruction sets: only own types.
SW_INLINE int64_t lesser(int64_t x, int64_t y) { return x < y ? x : y; }
SW_INLINE int32_t lesser(int32_t x, int32_t y) { return x < y ? x : y; }

constexpr int32_t kEnd = 1 << 30;
constexpr float kRound = 1.00001f;  // sums in another order differ by less

struct Cursor {
    const uint16_t* local;
    const float* values;
    int64_t n, at;
    float weight, upper;
    const float* block_max;
    float prefix;  // of the bounds up to this one

    int32_t doc() const { return at < n ? local[at] : kEnd; }
    float score() const { return weight * values[at]; }
    // The first posting of a document not before d: steps that double, then halving.
    void seek(int32_t d) {
        if (doc() >= d) return;
        int64_t step = 1, low = at;
        while (low + step < n && local[low + step] < d) low += step, step *= 2;
        int64_t high = lesser(n, low + step);
        while (low + 1 < high) {
            const int64_t middle = (low + high) / 2;
            (local[middle] < d ? low : high) = middle;
        }
        at = high;
    }
};

struct Range {
    const Bounded& a;
    std::vector<Cursor> cursors;
    Best best;
    int64_t first, opened;

    bool allowed(int32_t d) const { return !a.allowed || a.allowed[first + d]; }

    void open(int64_t q, int64_t r) {
        cursors.clear();
        first = r * a.size;
        for (int64_t t = a.ptr[q]; t < a.ptr[q + 1]; ++t) {
            const int64_t list = a.terms[t] * a.ranges + r, from = a.ptr_of[list], n = a.ptr_of[list + 1] - from;
            if (!n || a.weights[t] == 0) continue;
            cursors.push_back({a.local + from, a.values + from, n, 0, a.weights[t], a.weights[t] * a.list_max[list] * kRound,
                               a.block_max ? a.block_max + a.block_ptr[list] : nullptr, 0});
        }
    }

    void max_score() {
        std::stable_sort(cursors.begin(), cursors.end(), [](const Cursor& x, const Cursor& y) { return x.upper < y.upper; });
        const int64_t m = cursors.size();
        for (int64_t i = 0; i < m; ++i) cursors[i].prefix = cursors[i].upper + (i ? cursors[i - 1].prefix : 0);
        int64_t least = 0;  // lists before it cannot make a result by themselves
        for (;;) {
            while (least < m && cursors[least].prefix <= best.bar()) ++least;
            int32_t d = kEnd;
            for (int64_t i = least; i < m; ++i) d = lesser(d, cursors[i].doc());
            if (d == kEnd) return;
            float score = 0;
            for (int64_t i = least; i < m; ++i) {
                if (cursors[i].doc() == d) score += cursors[i].score(), ++cursors[i].at;
            }
            if (!allowed(d)) continue;
            bool in = true;
            for (int64_t i = least - 1; in && i >= 0; --i) {
                if ((in = score * kRound + cursors[i].prefix > best.bar())) {
                    cursors[i].seek(d);
                    if (cursors[i].doc() == d) score += cursors[i].score();
                }
            }
            if (in) ++opened, best.push(score, first + d);
        }
    }

    // The block of a cursor that may hold document d, and the last document of it.
    float block_of(const Cursor& c, int32_t d, int32_t& last) const {
        int64_t b = c.at / a.block;
        for (;; ++b) {
            const int64_t end = lesser(c.n, (b + 1) * a.block);
            last = c.local[end - 1];
            if (last >= d) return c.weight * c.block_max[b] * kRound;
            if (end == c.n) break;
        }
        last = kEnd;
        return 0;
    }

    void block_max_wand() {
        auto before = [](const Cursor& x, const Cursor& y) { return x.doc() < y.doc(); };
        std::stable_sort(cursors.begin(), cursors.end(), before);
        const int64_t m = cursors.size();
        auto settle = [&](int64_t i) {  // cursor i moved forward: back to its place
            for (; i + 1 < m && cursors[i + 1].doc() < cursors[i].doc(); ++i) std::swap(cursors[i], cursors[i + 1]);
        };
        for (;;) {
            float sum = 0;
            int64_t pivot = 0;
            for (; pivot < m; ++pivot) {
                if (cursors[pivot].doc() == kEnd) return;
                sum += cursors[pivot].upper;
                if (sum > best.bar()) break;
            }
            if (pivot >= m) return;
            const int32_t d = cursors[pivot].doc();
            while (pivot + 1 < m && cursors[pivot + 1].doc() == d) ++pivot;
            float bound = 0;
            int32_t next = pivot + 1 < m ? cursors[pivot + 1].doc() : kEnd;
            for (int64_t i = 0; i <= pivot; ++i) {
                int32_t last;
                bound += block_of(cursors[i], d, last);
                if (last < kEnd) next = lesser(next, last + 1);
            }
            if (bound <= best.bar()) {
                for (int64_t i = pivot; i >= 0; --i) cursors[i].seek(next), settle(i);
            } else if (cursors[0].doc() == d) {
                float score = 0;
                for (int64_t i = 0; i <= pivot; ++i) score += cursors[i].score();
                if (allowed(d)) ++opened, best.push(score, first + d);
                for (int64_t i = pivot; i >= 0; --i) ++cursors[i].at, settle(i);
            } else {
                int64_t i = pivot;
                while (cursors[i].doc() == d) --i;
                cursors[i].seek(d), settle(i);
            }
        }
    }
};

}  // namespace

void search_bounded(const Bounded& a) {
    split(a.queries, a.threads, a.queries * a.documents, [&](int64_t begin, int64_t end) {
        Range range{a, {}, {}, 0, 0};
        for (int64_t q = begin; q < end; ++q) {
            range.best = {a.scores + q * a.k, a.ids + q * a.k, a.k, 0};
            range.opened = 0;
            for (int64_t r = 0; r < a.ranges; ++r) {
                range.open(q, r);
                a.block_max ? range.block_max_wand() : range.max_score();
            }
            range.best.sort();
            for (int64_t i = range.best.size; i < a.k; ++i) range.best.score[i] = -INFINITY, range.best.id[i] = -1;
            a.opened[q] = range.opened;
        }
    });
}

}  // namespace sparseworks::SW_ISA
