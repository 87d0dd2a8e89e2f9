// Scores of single documents from their rows, and the strongest terms of a query.
#pragma once
#include "../simd.h"
#include "search.h"

namespace {

using sparseworks::Asked;

constexpr int kAhead = 4;  // documents whose lines are asked for before they are scored

SW_INLINE Lanes widened(const float* p) { return load(p); }
SW_INLINE Lanes widened(const uint16_t* p) { return load_fp16(p); }

template <class Term>
SW_INLINE Lanes looked_up(const float* query, const Term* terms) {
    Lanes q;
    each<W>([&](auto i) { q[int{i}] = query[terms[i]]; });
    return q;
}

// The last vector reads into the next document, or the zeros after the last one, and leaves them out.
template <class Term, class Value>
SW_INLINE float score(const float* query, const Term* terms, const Value* values, int64_t n) {
    Lanes total = zero();
    int64_t j = 0;
    for (; j + W <= n; j += W) total = multiply_add(widened(values + j), looked_up(query, terms + j), total);
    if (j < n) {
        Ints lane;
        each<W>([&](auto i) { lane[int{i}] = i; });
        const Ints inside = lane < static_cast<int32_t>(n - j);
        total = multiply_add(widened(values + j), floats(bits(looked_up(query, terms + j)) & inside), total);
    }
    return sum(total);
}

template <class T>
SW_INLINE void ahead(const T* p, int64_t n) {
    const char* bytes = reinterpret_cast<const char*>(p);
    for (int64_t at = 0; at < n * static_cast<int64_t>(sizeof(T)); at += 64) __builtin_prefetch(bytes + at);
}

// Positions of the `cut` largest positive weights among [from, to), best first, ties to the first.
SW_INLINE int64_t strongest(const Asked& a, int64_t from, int64_t to, int64_t cut, int64_t* strong) {
    int64_t n = 0;
    for (int64_t t = from; t < to; ++t) {
        const float w = a.weights[t];
        if (!(w > 0) || (n == cut && w <= a.weights[strong[n - 1]])) continue;
        int64_t at = n < cut ? n++ : n - 1;
        for (; at && a.weights[strong[at - 1]] < w; --at) strong[at] = strong[at - 1];
        strong[at] = t;
    }
    return n;
}

}  // namespace
