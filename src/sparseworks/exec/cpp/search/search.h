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
    const uint8_t* allowed;  // (documents) which may be found; null: all
};

// The same lists with bounds: the largest value of each list, and of each `block` postings of it (null: MaxScore, no blocks).
struct Bounded : Exact {
    const float* list_max;
    const int64_t* block_ptr;
    const float* block_max;
    int64_t block;
    int64_t* opened;  // (queries) documents scored in full
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
    const uint8_t* allowed;
};

// Documents as rows: terms u16, or i32 where `wide`.
struct Rows {
    const int64_t* ptr;
    const void* terms;
    const float* values;
    int64_t documents, width;
    bool wide;
};

// Lists of blocks of documents: block b of list t, first[t] <= b < first[t + 1], holds posting[of[b] .. of[b + 1]). Its summary
// is least[b] + step[b] * code at the terms of [summary[b], summary[b + 1]).
struct Seismic : Asked {
    Rows rows;
    const int64_t* first;
    const int64_t* of;
    const int32_t* posting;
    const int64_t* summary;
    const void* summary_terms;
    const uint8_t* codes;
    const float* least;
    const float* step;
    int64_t cut;
    float heap;
    const uint8_t* allowed;
    int64_t* opened;  // (queries) documents scored
};

// Rows to lists by term and range of documents; ptr_of is filled too.
struct Invert {
    Rows rows;
    int64_t size, ranges;
    int64_t* ptr_of;
    uint16_t* local;
    float* values;
};

// The largest values of each list, best first, ties to the lower document: list t goes to [to[t], to[t + 1]).
struct Impacts {
    const int64_t* ptr_of;
    const uint16_t* local;
    const float* values;
    int64_t width, ranges, size;
    const int64_t* to;
    int32_t* posting;
    float* impact;
    int threads;
};

// Groups the documents of each list, in place; starts[p] = 1 at the first posting of a block.
struct Group {
    Rows rows;
    const int64_t* list;
    int32_t* posting;
    uint8_t* starts;
    double fraction;
    int64_t least, strong;
    uint64_t seed;
    int threads;
};

// Summaries of blocks [begin, end): the maximum of each term, as many terms as hold `mass` of their sum, in eight bits.
struct Summaries {
    Rows rows;
    const int64_t* of;
    const int32_t* posting;
    int64_t begin, end;
    const int64_t* room;  // (end - begin + 1) where each may write
    double mass;
    int32_t* terms;
    uint8_t* codes;
    int64_t* counts;
    float* least;
    float* step;
    int threads;
};

void search_invert(const Invert&);
void search_impacts(const Impacts&);
void search_group(const Group&);
void search_summaries(const Summaries&);

SW_KERNEL(search_exact, Exact)
SW_KERNEL(search_bounded, Bounded)
SW_KERNEL(search_two_stage, TwoStage)
SW_KERNEL(search_seismic, Seismic)

}  // namespace sparseworks
