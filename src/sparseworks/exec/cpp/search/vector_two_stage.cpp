// Candidates from the strongest terms' strongest postings in whole numbers, then exact scores of the best candidates.
#include "../best.h"
#include "forward.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int kBins = 1024, kShift = 6;  // of sums below 65536
constexpr int kWhole = 257;              // query weights sum to at most this: 257 * 255 = 65535 fits 16 bits

template <class Term, class Value>
struct Search {
    const TwoStage& a;
    float* query;       // (width), zero between queries
    uint16_t* sums;     // (documents), zero between queries
    int32_t* touched;   // (longest) candidates, each once
    uint16_t* reached;  // (longest) their sums
    int32_t* chosen;    // (candidates)
    int64_t strong[64];
    int32_t counts[kBins];

    void list_ahead(int64_t term) {
        const int64_t from = a.ptr_of[term], to = a.ptr_of[term + 1];
        for (int64_t p = from; p < to; p += 16) __builtin_prefetch(a.posting + p);
        for (int64_t p = from; p < to; p += 64) __builtin_prefetch(a.impact + p);
    }

    int64_t gather(int64_t terms) {
        float total = 0;
        for (int64_t i = 0; i < terms; ++i) total += a.weights[strong[i]];
        int left = kWhole;
        for (int64_t i = 0; i < terms; ++i) {
            int w = static_cast<int>(a.weights[strong[i]] / total * kWhole);
            w = w < 1 ? 1 : w;
            w = w > left ? left : w;
            left -= w;
            if (i + 1 < terms) list_ahead(a.terms[strong[i + 1]]);
            const int64_t term = a.terms[strong[i]];
            for (int64_t p = a.ptr_of[term]; p < a.ptr_of[term + 1]; ++p) sums[a.posting[p]] += w * a.impact[p];
        }
        for (int i = 0; i < kBins; ++i) counts[i] = 0;
        int64_t n = 0;
        for (int64_t i = 0; i < terms; ++i) {
            const int64_t term = a.terms[strong[i]];
            for (int64_t p = a.ptr_of[term]; p < a.ptr_of[term + 1]; ++p) {
                const int32_t d = a.posting[p];
                const uint16_t s = sums[d];
                sums[d] = 0;
                touched[n] = d, reached[n] = s;
                const bool kept = s != 0 && (!a.allowed || a.allowed[d]);
                n += kept;
                counts[s >> kShift] += kept;
            }
        }
        return n;
    }

    // The bins above the cut whole, the last one in the order it was met.
    int64_t choose(int64_t n) {
        int bin = kBins - 1;
        int64_t above = 0;
        while (bin > 0 && above + counts[bin] < a.candidates) above += counts[bin--];
        int64_t room = a.candidates - above, m = 0;
        for (int64_t i = 0; i < n; ++i) {
            const int at = reached[i] >> kShift;
            if (at < bin || (at == bin && room-- <= 0)) continue;
            chosen[m++] = touched[i];
            __builtin_prefetch(a.forward + touched[i]);
        }
        return m;
    }

    void one(int64_t q) {
        const int64_t from = a.ptr[q], to = a.ptr[q + 1];
        const int64_t m = choose(gather(strongest(a, from, to, a.cut, strong)));
        for (int64_t t = from; t < to; ++t) query[a.terms[t]] = a.weights[t];
        Best best{a.scores + q * a.k, a.ids + q * a.k, a.k, 0};
        for (int64_t i = 0; i < m; ++i) {
            if (i + kAhead < m) {
                const int64_t next = a.forward[chosen[i + kAhead]], n = a.forward[chosen[i + kAhead] + 1] - next;
                ahead(static_cast<const Term*>(a.forward_terms) + next, n);
                ahead(static_cast<const Value*>(a.forward_values) + next, n);
            }
            const int64_t d = chosen[i], at = a.forward[d];
            best.push(score(query, static_cast<const Term*>(a.forward_terms) + at,
                            static_cast<const Value*>(a.forward_values) + at, a.forward[d + 1] - at), d);
        }
        best.sort();
        for (int64_t i = best.size; i < a.k; ++i) best.score[i] = -INFINITY, best.id[i] = -1;
        for (int64_t t = from; t < to; ++t) query[a.terms[t]] = 0;
    }
};

template <class Term, class Value>
void run(const TwoStage& a) {
    split(a.queries, a.threads, a.queries * a.longest, [&](int64_t begin, int64_t end) {
        thread_local Scratch scratch;
        const int64_t whole = a.width + a.documents + 2 * (a.longest + 1) + a.candidates;
        float* memory = scratch.floats(whole);
        for (int64_t i = 0; i < whole; ++i) memory[i] = 0;
        float* at = memory + a.width;
        uint16_t* sums = reinterpret_cast<uint16_t*>(at);
        at += a.documents;
        int32_t* touched = reinterpret_cast<int32_t*>(at);
        at += a.longest + 1;
        uint16_t* reached = reinterpret_cast<uint16_t*>(at);
        at += a.longest + 1;
        Search<Term, Value> search{a, memory, sums, touched, reached, reinterpret_cast<int32_t*>(at), {}, {}};
        for (int64_t q = begin; q < end; ++q) search.one(q);
    });
}

}  // namespace

void search_two_stage(const TwoStage& a) {
    if (a.wide) return a.half ? run<int32_t, uint16_t>(a) : run<int32_t, float>(a);
    a.half ? run<uint16_t, uint16_t>(a) : run<uint16_t, float>(a);
}

}  // namespace sparseworks::SW_ISA
