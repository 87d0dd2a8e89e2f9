// Blocks of the strongest terms' lists in the order of their summaries' products with the query; documents scored from their rows.
#include <algorithm>
#include <vector>

#include "../best.h"
#include "forward.h"

namespace sparseworks::SW_ISA {
namespace {

typedef uint8_t Codes __attribute__((vector_size(W), aligned(1), may_alias));
SW_INLINE Lanes load_codes(const uint8_t* p) {
#if SW_LANES == 8
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(SW_ISA_AVX512)
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Codes*>(p), Ints), Lanes);
#endif
}

struct Opening {
    float bound;
    int64_t block;
    bool operator<(const Opening& o) const { return bound < o.bound || (bound == o.bound && block > o.block); }
};

template <class Term>
struct Search {
    const Seismic& a;
    float* query;    // (width), zero between queries
    uint64_t* seen;  // a bit a document, zero between queries
    std::vector<Opening> blocks;
    int64_t strong[64];

    const Term* terms() const { return static_cast<const Term*>(a.rows.terms); }

    int64_t words() const { return a.rows.documents / 64 + 1; }

    float bound(int64_t b) const {
        const int64_t from = a.summary[b], n = a.summary[b + 1] - from;
        const Term* at = static_cast<const Term*>(a.summary_terms) + from;
        Lanes total = zero(), sums = zero();
        int64_t j = 0;
        for (; j + W <= n; j += W) {
            const Lanes q = looked_up(query, at + j);
            sums += q;
            total = multiply_add(load_codes(a.codes + from + j), q, total);
        }
        if (j < n) {
            Ints lane;
            each<W>([&](auto i) { lane[int{i}] = i; });
            const Ints inside = lane < static_cast<int32_t>(n - j);
            const Lanes q = floats(bits(looked_up(query, at + j)) & inside);
            sums += q;
            total = multiply_add(load_codes(a.codes + from + j), q, total);
        }
        return a.least[b] * sum(sums) + a.step[b] * sum(total);
    }

    void one(int64_t q) {
        const int64_t from = a.ptr[q], to = a.ptr[q + 1];
        for (int64_t t = from; t < to; ++t) query[a.terms[t]] = a.weights[t];
        const int64_t lists = strongest(a, from, to, a.cut, strong);
        blocks.clear();
        for (int64_t i = 0; i < lists; ++i) {
            const int64_t t = a.terms[strong[i]];
            for (int64_t b = a.first[t]; b < a.first[t + 1]; ++b) blocks.push_back({bound(b), b});
        }
        std::make_heap(blocks.begin(), blocks.end());
        Best best{a.scores + q * a.k, a.ids + q * a.k, a.k, 0};
        int64_t opened = 0;
        int32_t fresh[kAhead];
        while (!blocks.empty()) {
            const Opening next = blocks.front();
            if (best.size == best.k && next.bound < a.heap * best.bar()) break;
            std::pop_heap(blocks.begin(), blocks.end());
            blocks.pop_back();
            if (!blocks.empty()) __builtin_prefetch(a.posting + a.of[blocks.front().block]);
            for (int64_t p = a.of[next.block]; p < a.of[next.block + 1];) {
                int n = 0;
                for (; n < kAhead && p < a.of[next.block + 1]; ++p) {
                    const int32_t d = a.posting[p];
                    uint64_t& word = seen[d >> 6];
                    if (word >> (d & 63) & 1) continue;
                    word |= uint64_t{1} << (d & 63);
                    if (a.allowed && !a.allowed[d]) continue;
                    const int64_t row = a.rows.ptr[d], length = a.rows.ptr[d + 1] - row;
                    ahead(terms() + row, length), ahead(a.rows.values + row, length);
                    fresh[n++] = d;
                }
                for (int i = 0; i < n; ++i) {
                    const int64_t row = a.rows.ptr[fresh[i]];
                    best.push(score(query, terms() + row, a.rows.values + row, a.rows.ptr[fresh[i] + 1] - row), fresh[i]);
                }
                opened += n;
            }
        }
        best.sort();
        for (int64_t i = best.size; i < a.k; ++i) best.score[i] = -INFINITY, best.id[i] = -1;
        a.opened[q] = opened;
        std::memset(seen, 0, words() * sizeof(uint64_t));
        for (int64_t t = from; t < to; ++t) query[a.terms[t]] = 0;
    }
};

template <class Term>
void run(const Seismic& a) {
    split(a.queries, a.threads, a.queries << 15, [&](int64_t begin, int64_t end) {
        thread_local Scratch scratch;
        const int64_t words = a.rows.documents / 64 + 1, whole = 2 * words + a.rows.width;
        float* memory = scratch.floats(whole);
        std::memset(memory, 0, whole * sizeof(float));
        Search<Term> search{a, memory + 2 * words, reinterpret_cast<uint64_t*>(memory), {}, {}};
        for (int64_t q = begin; q < end; ++q) search.one(q);
    });
}

}  // namespace

void search_seismic(const Seismic& a) { a.rows.wide ? run<int32_t>(a) : run<uint16_t>(a); }

}  // namespace sparseworks::SW_ISA
