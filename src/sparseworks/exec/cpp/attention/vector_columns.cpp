// Attention of blocks of queries to keys that lie apart: the keys of a block are gathered, a panel at a time, and read once for all
// queries of the block and all heads that share them. The same for the largest score of each key.
#include "flash.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kStep = 64;   // keys gathered at a time
constexpr int64_t kTall = 128;  // queries that share them, at most
constexpr int64_t kAhead = 8;   // rows that are on their way while one is copied

// A block of scores against keys that lie apart; `seen` of them by each row, null: all.
struct Gathered {
    int64_t rows, keys;
    const int32_t* seen;
    int64_t visible(int64_t row) const { return seen ? seen[row] : keys; }
    int64_t width() const { return up_to(keys, kPanel); }
};

// Rows of units of `tall` queries at multiples of `tall` positions, each in parts of at most kTall queries.
struct Strips {
    int64_t tall, skipped, queries, count, parts, step;

    Strips(int64_t tall, int64_t offset, int64_t queries)
        : tall(tall),
          skipped(offset % tall),
          queries(queries),
          count((skipped + queries + tall - 1) / tall),
          parts((least(tall, queries) + kTall - 1) / kTall),
          step((least(tall, queries) + parts - 1) / parts) {}

    Range of(int64_t row, int64_t part) const {
        const int64_t first = most(0, row * tall - skipped), last = least(queries, (row + 1) * tall - skipped);
        return {least(last, first + part * step), least(last, first + (part + 1) * step)};
    }
};

// The listed keys below `last`, up to kStep at a time.
struct Reader {
    const int32_t *unit, *end;
    int64_t wide, last, inside;

    int64_t next(int32_t* at) {
        int64_t count = 0;
        while (unit < end && count < kStep) {
            const int64_t stop = least((*unit + static_cast<int64_t>(1)) * wide, last);
            int64_t key = *unit * wide + inside;
            for (; key < stop && count < kStep; ++key) at[count++] = static_cast<int32_t>(key);
            if (key < stop) inside = key - *unit * wide;
            else ++unit, inside = 0;
        }
        return count;
    }
};

void gather(const float* from, int64_t stride, const int32_t* at, int64_t count, int64_t d, float* to) {
    for (int64_t j = 0; j < count; ++j) {
        if (j + kAhead < count) {
            const float* ahead = from + at[j + kAhead] * stride;
            for (int64_t c = 0; c < d; c += 16) __builtin_prefetch(ahead + c);
        }
        std::memcpy(to + j * d, from + at[j] * stride, d * sizeof(float));
    }
}

// A thread's memory: gathered rows, keys and values as the products take them, then what is asked for.
struct Room {
    float *rows, *keys, *values, *rest;
    int32_t *at, *seen;

    Room(int64_t d, int64_t more) {
        static thread_local Scratch scratch;
        const int64_t depth = up_to(d, kPanel), wide = up_to(kStep, kPanel);
        const int64_t raw = up_to(kStep * d, 16), packed = up_to(wide * d, 16), whole = wide * depth;
        rows = scratch.floats(raw + packed + whole + kStep + kTall + more);
        keys = rows + raw, values = keys + packed;
        at = reinterpret_cast<int32_t*>(values + whole), seen = at + kStep;
        rest = values + whole + kStep + kTall;
    }
};

void strip(const Columns& a, const Strips& s, int64_t b, int64_t h, int64_t heads, int64_t row, int64_t part) {
    const Sizes& n = a.n;
    const Range range = s.of(row, part);
    if (range.from >= range.to) return;
    const int64_t depth = up_to(n.d, kPanel), width = up_to(kStep, kPanel), size = Running::floats(s.step, depth, width);
    const int64_t g = h / (n.heads / n.kv_heads), start = a.offset + range.from;
    const Room room(n.d, heads * size);
    const auto running = [&](int64_t i) { return Running(room.rest + i * size, s.step, depth, width); };
    Gathered t{range.to - range.from, 0, nullptr};
    for (int64_t i = 0; i < heads; ++i) begin(running(i), a.q.rows(b, h + i, range.from), a.q.token, t.rows, n.d, a.scale);
    const int64_t own = a.lists.heads == 1 ? 0 : h / (n.heads / a.lists.heads);
    const int32_t* ptr = a.lists.ptr + ((a.batches == 1 ? 0 : b) * a.lists.heads + own) * s.count + row;
    Reader reader{a.lists.columns + ptr[0], a.lists.columns + ptr[1], a.lists.wide, a.causal ? start + t.rows : n.keys, 0};
    while ((t.keys = reader.next(room.at)) > 0) {
        gather(a.k.rows(b, g, 0), a.k.token, room.at, t.keys, n.d, room.rows);
        pack_transposed(room.rows, n.d, t.keys, n.d, room.keys);
        gather(a.v.rows(b, g, 0), a.v.token, room.at, t.keys, n.d, room.rows);
        pack_rows(room.rows, n.d, t.keys, n.d, room.values);
        t.seen = nullptr;
        if (a.causal && room.at[t.keys - 1] > start) {
            for (int64_t r = 0, j = 0; r < t.rows; ++r) {
                while (j < t.keys && room.at[j] <= start + r) ++j;
                room.seen[r] = static_cast<int32_t>(j);
            }
            t.seen = room.seen;
        }
        for (int64_t i = 0; i < heads; ++i) attend_block(t, running(i), room.keys, room.values, n.d);
    }
    for (int64_t i = 0; i < heads; ++i) {
        float* lse = a.lse + (b * n.heads + h + i) * n.queries + range.from;
        finish(running(i), a.out.rows(b, h + i, range.from), a.out.token, lse, t.rows, n.d);
    }
}

// The largest of scores[row][query] over the queries that see a key, for `count` rows of keys at `places`; what is not a number stays.
void largest_seen(const float* scores, int64_t wide, int64_t queries, const int32_t* places, int64_t count, int64_t start,
                  bool causal, float scale, bool first, float* to) {
    for (int64_t j = 0; j < count; ++j) {
        const float* s = scores + j * wide;
        const int64_t from = causal ? most(0, least(places[j] - start, queries)) : 0;
        Lanes high = all(first ? kHidden : to[j]), odd = zero();
        for (int64_t i = from / W * W; i < queries; i += W) {
            Lanes v = load(s + i) * scale;
            if (i + W > queries) v = first_lanes(v, queries - i, all(kHidden));
            if (i < from) v = lane_numbers() < all(static_cast<float>(from - i)) ? all(kHidden) : v;
            high = greater(high, v);
            odd += v == v ? zero() : v;
        }
        const float bad = sum(odd), before = first ? 0.0f : to[j];
        to[j] = bad != bad ? bad : before != before ? before : peak(high);
    }
}

void strip_peaks(const Peaks& a, const Strips& s, int64_t b, int64_t h, int64_t row) {
    const Sizes& n = a.n;
    const int64_t line = (b * n.heads + h) * s.count + row, most_wide = up_to(s.step, kPanel);
    const Room room(n.d, most_wide * (n.d + kStep));
    float *queries = room.rest, *found = queries + most_wide * n.d;
    const int32_t* places = a.places + line * a.count;
    for (int64_t part = 0; part < s.parts; ++part) {
        const Range range = s.of(row, part);
        const int64_t rows = range.to - range.from, wide = up_to(rows, kPanel);
        pack_transposed(a.q.rows(b, h, range.from), a.q.token, rows, n.d, queries);
        for (int64_t first = 0; first < a.count; first += kStep) {
            const int64_t count = least(kStep, a.count - first);
            gather(a.k.rows(b, h / (n.heads / n.kv_heads), 0), a.k.token, places + first, count, n.d, room.rows);
            product<Start::zero>({room.rows, n.d, 1}, count, {queries, n.d * kPanel, wide / kPanel}, found, wide, nullptr,
                                 [&](int64_t, int64_t, int64_t) { return Range{0, n.d}; });
            largest_seen(found, wide, rows, places + first, count, a.offset + range.from, a.causal, a.scale, part == 0,
                         a.out + line * a.count + first);
        }
    }
}

}  // namespace

void prefill_columns(const Columns& a) {
    const Sizes& n = a.n;
    const Strips s(a.lists.tall, a.offset, n.queries);
    const int64_t heads = least(n.heads / a.lists.heads, n.heads / n.kv_heads), teams = n.batch * n.heads / heads;
    const int64_t items = teams * s.count * s.parts;
    sparseworks::dynamic(items, a.threads, [&](int64_t item) {
        const int64_t i = items - 1 - item;  // the longest lists first, where they grow with the text
        const int64_t team = i % teams, strip_of = i / teams;
        strip(a, s, team / (n.heads / heads), team % (n.heads / heads) * heads, heads, strip_of / s.parts, strip_of % s.parts);
    });
}

void peaks(const Peaks& a) {
    const Sizes& n = a.n;
    const Strips s(a.tall, a.offset, n.queries);
    sparseworks::dynamic(n.batch * n.heads * s.count, a.threads, [&](int64_t i) {
        const int64_t team = i / s.count;
        strip_peaks(a, s, team / n.heads, team % n.heads, i % s.count);
    });
}

}  // namespace sparseworks::SW_ISA
