// Search: arguments of both kernels.
#include "../bind.h"
#include "search.h"

namespace sparseworks {
namespace {

void exact(Address ptr, Address terms, Address weights, int64_t queries, int64_t k, Address scores, Address ids, int threads,
           Address ptr_of, Address local, Address values, int64_t documents, int64_t ranges, int64_t size) {
    SW_RUN(search_exact, {{at<int64_t>(ptr), at<int32_t>(terms), at<float>(weights), queries, k, to<float>(scores),
                           to<int64_t>(ids), threads},
                          at<int64_t>(ptr_of), at<uint16_t>(local), at<float>(values), documents, ranges, size});
}

void two_stage(Address ptr, Address terms, Address weights, int64_t queries, int64_t k, Address scores, Address ids,
               int threads, Address ptr_of, Address posting, Address impact, Address forward, Address forward_terms,
               Address forward_values, int64_t documents, int64_t width, int64_t cut, int64_t candidates, int64_t longest,
               bool wide, bool half) {
    SW_RUN(search_two_stage,
           {{at<int64_t>(ptr), at<int32_t>(terms), at<float>(weights), queries, k, to<float>(scores), to<int64_t>(ids),
             threads},
            at<int64_t>(ptr_of), at<int32_t>(posting), at<uint8_t>(impact), at<int64_t>(forward), at<void>(forward_terms),
            at<void>(forward_values), documents, width, cut, candidates, longest, wide, half});
}

}  // namespace

void bind_search(nb::module_& m) {
    m.def("search_exact", &exact);
    m.def("search_two_stage", &two_stage);
}

}  // namespace sparseworks
