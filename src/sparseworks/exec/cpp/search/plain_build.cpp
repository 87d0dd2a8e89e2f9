// Building the indexes: rows to lists, the largest values of a list, its documents in blocks, summaries of blocks.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../parallel.h"
#include "search.h"

namespace sparseworks {
namespace {

// A row of documents, whatever its terms are stored as.
struct Row {
    const Rows& rows;
    int64_t from, n;
    Row(const Rows& r, int64_t d) : rows(r), from(r.ptr[d]), n(r.ptr[d + 1] - r.ptr[d]) {}
    int32_t term(int64_t i) const {
        return rows.wide ? static_cast<const int32_t*>(rows.terms)[from + i] : static_cast<const uint16_t*>(rows.terms)[from + i];
    }
    float value(int64_t i) const { return rows.values[from + i]; }
};

// splitmix64 (Steele, Lea, Flood, 2014).
uint64_t draw(uint64_t& state) {
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

struct Entry {
    int32_t term;
    float value;
};

// The `most` largest entries of each document, for products with centroids.
void strong_entries(const Group& g, std::vector<Entry>& out, std::vector<int64_t>& ptr) {
    ptr.assign(g.rows.documents + 1, 0);
    for (int64_t d = 0; d < g.rows.documents; ++d) ptr[d + 1] = ptr[d] + std::min(g.strong, Row(g.rows, d).n);
    out.resize(ptr.back());
    std::vector<Entry> all;
    for (int64_t d = 0; d < g.rows.documents; ++d) {
        const Row row(g.rows, d);
        all.clear();
        for (int64_t i = 0; i < row.n; ++i) all.push_back({row.term(i), row.value(i)});
        const int64_t n = ptr[d + 1] - ptr[d];
        std::partial_sort(all.begin(), all.begin() + n, all.end(), [](const Entry& x, const Entry& y) {
            return x.value > y.value || (x.value == y.value && x.term < y.term);
        });
        std::copy(all.begin(), all.begin() + n, out.begin() + ptr[d]);
    }
}

// One thread's room to put the documents of a list to their nearest centroid.
struct Clusters {
    const Group& g;
    const std::vector<Entry>& strong;
    const std::vector<int64_t>& strong_ptr;
    std::vector<int32_t> count, place;  // (width) centroid entries of a term, and where they begin
    std::vector<int32_t> touched, order, of, size, moved;
    std::vector<Entry> entries;  // .term is the centroid
    std::vector<float> sums;
    std::vector<char> alive;

    Clusters(const Group& group, const std::vector<Entry>& s, const std::vector<int64_t>& p)
        : g(group), strong(s), strong_ptr(p), count(group.rows.width), place(group.rows.width) {}

    void index(int64_t centroids) {
        touched.clear();
        for (int64_t c = 0; c < centroids; ++c) {
            const Row row(g.rows, order[c]);
            for (int64_t i = 0; i < row.n; ++i) {
                if (!count[row.term(i)]++) touched.push_back(row.term(i));
            }
        }
        int32_t total = 0;
        for (int32_t t : touched) place[t] = total, total += count[t], count[t] = 0;
        entries.resize(total);
        for (int64_t c = 0; c < centroids; ++c) {
            const Row row(g.rows, order[c]);
            for (int64_t i = 0; i < row.n; ++i) {
                const int32_t t = row.term(i);
                entries[place[t] + count[t]++] = {static_cast<int32_t>(c), row.value(i)};
            }
        }
    }

    int32_t nearest(int32_t document, int64_t centroids) {
        for (int64_t e = strong_ptr[document]; e < strong_ptr[document + 1]; ++e) {
            const int32_t t = strong[e].term;
            const Entry* at = entries.data() + place[t];
            for (int32_t i = 0; i < count[t]; ++i) sums[at[i].term] += strong[e].value * at[i].value;
        }
        int32_t best = -1;
        float most = 0;
        for (int64_t c = 0; c < centroids; ++c) {
            if (alive[c] && (best < 0 || sums[c] > most)) best = c, most = sums[c];
            sums[c] = 0;
        }
        return best;
    }

    void list(int64_t t) {
        const int64_t from = g.list[t], n = g.list[t + 1] - from;
        if (!n) return;
        int32_t* posting = g.posting + from;
        const int64_t centroids = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(g.fraction * n)));
        order.assign(posting, posting + n);
        uint64_t state = g.seed + static_cast<uint64_t>(t);
        for (int64_t c = 0; c < centroids; ++c) std::swap(order[c], order[c + draw(state) % (n - c)]);
        sums.assign(centroids, 0), alive.assign(centroids, 1), size.assign(centroids, 0), of.resize(n);
        index(centroids);
        for (int64_t i = 0; i < n; ++i) ++size[of[i] = nearest(posting[i], centroids)];
        if (*std::max_element(size.begin(), size.end()) >= g.least) {
            for (int64_t c = 0; c < centroids; ++c) alive[c] = size[c] >= g.least;
            for (int64_t i = 0; i < n; ++i) {
                if (!alive[of[i]]) --size[of[i]], ++size[of[i] = nearest(posting[i], centroids)];
            }
        }
        for (int32_t t2 : touched) count[t2] = 0;
        order.assign(posting, posting + n);
        moved.assign(centroids + 1, 0);
        for (int64_t c = 0; c < centroids; ++c) {
            moved[c + 1] = moved[c] + size[c];
            if (size[c]) g.starts[from + moved[c]] = 1;
        }
        for (int64_t i = 0; i < n; ++i) posting[moved[of[i]]++] = order[i];
    }
};

// One thread's room to summarise blocks.
struct Summary {
    const Summaries& s;
    std::vector<float> most;  // (width), zero between blocks
    std::vector<Entry> kept;

    explicit Summary(const Summaries& summaries) : s(summaries), most(summaries.rows.width) {}

    void block(int64_t b) {
        kept.clear();
        double total = 0;
        for (int64_t p = s.of[b]; p < s.of[b + 1]; ++p) {
            const Row row(s.rows, s.posting[p]);
            for (int64_t i = 0; i < row.n; ++i) {
                const int32_t t = row.term(i);
                if (row.value(i) <= 0) continue;
                if (most[t] == 0) kept.push_back({t, 0});
                most[t] = std::max(most[t], row.value(i));
            }
        }
        for (Entry& e : kept) e.value = most[e.term], total += e.value, most[e.term] = 0;
        std::sort(kept.begin(), kept.end(), [](const Entry& x, const Entry& y) {
            return x.value > y.value || (x.value == y.value && x.term < y.term);
        });
        double held = 0;
        int64_t n = 0;
        const int64_t all = kept.size();
        while (n < all && (s.mass >= 1 || held < s.mass * total)) held += kept[n++].value;
        const float least = n ? kept[n - 1].value : 0, step = n ? (kept[0].value - least) / 255 * 1.000001f : 0;
        std::sort(kept.begin(), kept.begin() + n, [](const Entry& x, const Entry& y) { return x.term < y.term; });
        const int64_t i = b - s.begin, to = s.room[i];
        for (int64_t e = 0; e < n; ++e) {
            s.terms[to + e] = kept[e].term;
            const float code = step > 0 ? std::ceil((kept[e].value - least) / step) : 0;
            s.codes[to + e] = static_cast<uint8_t>(std::min(code, 255.0f));
        }
        s.counts[i] = n, s.least[i] = least, s.step[i] = step;
    }
};

// body(begin, end, room) over [0, n) in small parts; each thread makes its room once.
template <class Make, class Body>
void each_part(int64_t n, int threads, const Make& make, const Body& body) {
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, n));
    split(parts, threads, kSerialWork + n, [&](int64_t first, int64_t last) {
        auto room = make();
        for (int64_t part = first; part < last; ++part) {
            for (int64_t i = part; i < n; i += parts) body(i, room);
        }
    });
}

}  // namespace

void search_invert(const Invert& a) {
    const int64_t lists = a.rows.width * a.ranges;
    for (int64_t i = 0; i <= lists; ++i) a.ptr_of[i] = 0;
    for (int64_t d = 0; d < a.rows.documents; ++d) {
        const Row row(a.rows, d);
        for (int64_t i = 0; i < row.n; ++i) ++a.ptr_of[row.term(i) * a.ranges + d / a.size + 1];
    }
    for (int64_t i = 0; i < lists; ++i) a.ptr_of[i + 1] += a.ptr_of[i];
    std::vector<int64_t> at(a.ptr_of, a.ptr_of + lists);
    for (int64_t d = 0; d < a.rows.documents; ++d) {
        const Row row(a.rows, d);
        for (int64_t i = 0; i < row.n; ++i) {
            const int64_t to = at[row.term(i) * a.ranges + d / a.size]++;
            a.local[to] = static_cast<uint16_t>(d % a.size), a.values[to] = row.value(i);
        }
    }
}

void search_impacts(const Impacts& a) {
    using Found = std::vector<std::pair<float, int32_t>>;
    each_part(a.width, a.threads, [] { return Found(); }, [&](int64_t t, Found& all) {
        all.clear();
        for (int64_t r = 0; r < a.ranges; ++r) {
            for (int64_t p = a.ptr_of[t * a.ranges + r]; p < a.ptr_of[t * a.ranges + r + 1]; ++p) {
                all.push_back({-a.values[p], static_cast<int32_t>(r * a.size + a.local[p])});
            }
        }
        const int64_t n = a.to[t + 1] - a.to[t];
        std::partial_sort(all.begin(), all.begin() + n, all.end());
        for (int64_t i = 0; i < n; ++i) a.impact[a.to[t] + i] = -all[i].first, a.posting[a.to[t] + i] = all[i].second;
    });
}

void search_group(const Group& a) {
    std::vector<Entry> strong;
    std::vector<int64_t> ptr;
    strong_entries(a, strong, ptr);
    each_part(a.rows.width, a.threads, [&] { return Clusters(a, strong, ptr); }, [](int64_t t, Clusters& c) { c.list(t); });
}

void search_summaries(const Summaries& a) {
    each_part(a.end - a.begin, a.threads, [&] { return Summary(a); }, [&](int64_t i, Summary& s) { s.block(a.begin + i); });
    int64_t to = 0;
    for (int64_t i = 0; i < a.end - a.begin; ++i) {
        for (int64_t e = 0; e < a.counts[i]; ++e, ++to) a.terms[to] = a.terms[a.room[i] + e], a.codes[to] = a.codes[a.room[i] + e];
    }
}

}  // namespace sparseworks
