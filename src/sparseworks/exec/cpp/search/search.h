// Top-k inner products of sparse queries with sparse documents: what the kernels are given, checked by Python.
#pragma once
#include <cstdint>

#include "../isa.h"

namespace sparseworks {

// Queries as CSR, and the answers: scores and ids (queries, k).
struct Asked {
    const int64_t* ptr;
    const int32_t* terms;
    const float* weights;
    int64_t queries, k;
    float* scores;
    int64_t* ids;
    int threads;
};

// Postings ordered by term, then document; those of term t in range r are [ptr[t * ranges + r], ptr[t * ranges + r + 1]).
struct Exact : Asked {
    const int64_t* ptr_of;
    const uint16_t* local;
    const float* values;
    int64_t documents, ranges, size;
};

// Postings ordered by term, then impact, cut; the forward index (terms u16 or u32, values fp16 or fp32) scores candidates.
struct TwoStage : Asked {
    const int64_t* ptr_of;
    const int32_t* posting;
    const uint8_t* impact;
    const int64_t* forward;
    const void* forward_terms;
    const void* forward_values;
    int64_t documents, width, cut, candidates, longest;
    bool wide, half;
};

SW_KERNEL(search_exact, Exact)
SW_KERNEL(search_two_stage, TwoStage)

}  // namespace sparseworks
