// Search: arguments of both kernels.
#include "../bind.h"
#include "search.h"

namespace sparseworks {
namespace {

void exact(Address ptr, Address terms, Address weights, int64_t queries, int64_t k, Address scores, Address ids, int threads,
           Address ptr_of, Address local, Address values, int64_t documents, int64_t ranges, int64_t size, Address allowed) {
    nb::gil_scoped_release free;
    SW_RUN(search_exact, {{at<int64_t>(ptr), at<int32_t>(terms), at<float>(weights), queries, k, to<float>(scores),
                           to<int64_t>(ids), threads},
                          at<int64_t>(ptr_of), at<uint16_t>(local), at<float>(values), documents, ranges, size,
                          at<uint8_t>(allowed)});
}

void two_stage(Address ptr, Address terms, Address weights, int64_t queries, int64_t k, Address scores, Address ids,
               int threads, Address ptr_of, Address posting, Address impact, Address forward, Address forward_terms,
               Address forward_values, int64_t documents, int64_t width, int64_t cut, int64_t candidates, int64_t longest,
               bool wide, bool half, Address allowed) {
    nb::gil_scoped_release free;
    SW_RUN(search_two_stage,
           {{at<int64_t>(ptr), at<int32_t>(terms), at<float>(weights), queries, k, to<float>(scores), to<int64_t>(ids),
             threads},
            at<int64_t>(ptr_of), at<int32_t>(posting), at<uint8_t>(impact), at<int64_t>(forward), at<void>(forward_terms),
            at<void>(forward_values), documents, width, cut, candidates, longest, wide, half,
            at<uint8_t>(allowed)});
}

void bounded(Address ptr, Address terms, Address weights, int64_t queries, int64_t k, Address scores, Address ids, int threads,
             Address ptr_of, Address local, Address values, int64_t documents, int64_t ranges, int64_t size, Address allowed,
             Address list_max, Address block_ptr, Address block_max, int64_t block, Address opened) {
    nb::gil_scoped_release free;
    SW_RUN(search_bounded, {{{at<int64_t>(ptr), at<int32_t>(terms), at<float>(weights), queries, k, to<float>(scores),
                              to<int64_t>(ids), threads},
                             at<int64_t>(ptr_of), at<uint16_t>(local), at<float>(values), documents, ranges, size,
                             at<uint8_t>(allowed)},
                            at<float>(list_max), at<int64_t>(block_ptr), at<float>(block_max), block, to<int64_t>(opened)});
}

void seismic(Address ptr, Address terms, Address weights, int64_t queries, int64_t k, Address scores, Address ids, int threads,
             Address row_ptr, Address row_terms, Address row_values, int64_t documents, int64_t width, bool wide, Address first,
             Address of, Address posting, Address summary, Address summary_terms, Address codes, Address least, Address step,
             int64_t cut, float heap, Address allowed, Address opened) {
    nb::gil_scoped_release free;
    SW_RUN(search_seismic,
           {{at<int64_t>(ptr), at<int32_t>(terms), at<float>(weights), queries, k, to<float>(scores), to<int64_t>(ids), threads},
            {at<int64_t>(row_ptr), at<void>(row_terms), at<float>(row_values), documents, width, wide},
            at<int64_t>(first), at<int64_t>(of), at<int32_t>(posting), at<int64_t>(summary), at<void>(summary_terms),
            at<uint8_t>(codes), at<float>(least), at<float>(step), cut, heap, at<uint8_t>(allowed), to<int64_t>(opened)});
}

void invert(Address row_ptr, Address row_terms, Address row_values, int64_t documents, int64_t width, bool wide, int64_t size,
            int64_t ranges, Address ptr_of, Address local, Address values) {
    nb::gil_scoped_release free;
    search_invert({{at<int64_t>(row_ptr), at<void>(row_terms), at<float>(row_values), documents, width, wide},
                   size, ranges, to<int64_t>(ptr_of), to<uint16_t>(local), to<float>(values)});
}

void impacts(Address ptr_of, Address local, Address values, int64_t width, int64_t ranges, int64_t size, Address ends,
             Address posting, Address impact, int threads) {
    nb::gil_scoped_release free;
    search_impacts({at<int64_t>(ptr_of), at<uint16_t>(local), at<float>(values), width, ranges, size, at<int64_t>(ends),
                    to<int32_t>(posting), to<float>(impact), threads});
}

void group(Address row_ptr, Address row_terms, Address row_values, int64_t documents, int64_t width, bool wide, Address list,
           Address posting, Address starts, double fraction, int64_t least, int64_t strong, uint64_t seed, int threads) {
    nb::gil_scoped_release free;
    search_group({{at<int64_t>(row_ptr), at<void>(row_terms), at<float>(row_values), documents, width, wide},
                  at<int64_t>(list), to<int32_t>(posting), to<uint8_t>(starts), fraction, least, strong, seed, threads});
}

void summaries(Address row_ptr, Address row_terms, Address row_values, int64_t documents, int64_t width, bool wide, Address of,
               Address posting, int64_t begin, int64_t end, Address room, double mass, Address terms, Address codes,
               Address counts, Address least, Address step, int threads) {
    nb::gil_scoped_release free;
    search_summaries({{at<int64_t>(row_ptr), at<void>(row_terms), at<float>(row_values), documents, width, wide},
                      at<int64_t>(of), at<int32_t>(posting), begin, end, at<int64_t>(room), mass, to<int32_t>(terms),
                      to<uint8_t>(codes), to<int64_t>(counts), to<float>(least), to<float>(step), threads});
}

}  // namespace

void bind_search(nb::module_& m) {
    m.def("search_exact", &exact);
    m.def("search_two_stage", &two_stage);
    m.def("search_bounded", &bounded);
    m.def("search_seismic", &seismic);
    m.def("search_invert", &invert);
    m.def("search_impacts", &impacts);
    m.def("search_group", &group);
    m.def("search_summaries", &summaries);
}

}  // namespace sparseworks
