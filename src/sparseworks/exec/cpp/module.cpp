// Bindings: pointers come as integers (a DLPack exchange costs ten times the call), the processor decides what runs.
#include <nanobind/nanobind.h>

#include "kernels.h"

namespace nb = nanobind;
using namespace sparseworks;

namespace {

using Address = uint64_t;

template <class T>
const T* at(Address address) {
    return reinterpret_cast<const T*>(address);
}

struct Table {
    const char* isa = "portable";
    void (*tile)(const Tile&) = portable::tile;
    void (*pairs)(const Pairs&) = portable::pairs;
    void (*panel)(const Panel&) = portable::panel;
    void (*csr)(const Csr&) = portable::csr;
    void (*bitmask)(const Bitmask&) = portable::bitmask;
};

Table choose() {
    Table table;
#ifdef SPARSEWORKS_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
        table = {"avx2", avx2::tile, avx2::pairs, avx2::panel, avx2::csr, avx2::bitmask};
    }
#endif
    return table;
}

Table table = choose();

nb::dict features() {
    nb::dict facts;
    facts["isa"] = table.isa;
#ifdef _OPENMP
    facts["openmp"] = true;
#else
    facts["openmp"] = false;
#endif
    facts["version"] = 1;
    return facts;
}

// For tests: the portable kernels on a processor that has better ones.
void use_portable(bool yes) { table = yes ? Table{} : choose(); }

void tile(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16, Address ptr,
          Address columns, Address values, Address row_of, int64_t k_block, int64_t row_block) {
    table.tile({{at<float>(x), reinterpret_cast<float*>(y), at<float>(bias), rows, in, out, bf16, threads},
                at<int32_t>(ptr), at<uint8_t>(columns), at<void>(values), at<uint8_t>(row_of), k_block, row_block});
}

void pairs(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, Address ptr,
           Address columns, Address values, Address row_of, Address scale, int64_t limit, int64_t k_block,
           int64_t row_block) {
    table.pairs({{at<float>(x), reinterpret_cast<float*>(y), at<float>(bias), rows, in, out, false, threads},
                 at<int32_t>(ptr), at<uint8_t>(columns), at<int16_t>(values), at<uint8_t>(row_of), at<float>(scale),
                 limit, k_block, row_block});
}

void panel(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16, Address ptr,
           Address columns, Address values, int64_t height, int64_t k_block) {
    table.panel({{at<float>(x), reinterpret_cast<float*>(y), at<float>(bias), rows, in, out, bf16, threads},
                 at<int32_t>(ptr), at<uint16_t>(columns), at<void>(values), height, k_block});
}

void csr(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16, Address ptr,
         Address columns, Address values, int64_t slots) {
    table.csr({{at<float>(x), reinterpret_cast<float*>(y), at<float>(bias), rows, in, out, bf16, threads},
               at<int32_t>(ptr), at<uint16_t>(columns), at<void>(values), slots});
}

void bitmask(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16,
             Address ptr, Address bits, Address values, int64_t row_bytes, int64_t per_row) {
    table.bitmask({{at<float>(x), reinterpret_cast<float*>(y), at<float>(bias), rows, in, out, bf16, threads},
                   at<int32_t>(ptr), at<uint8_t>(bits), at<void>(values), row_bytes, per_row});
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("features", &features);
    m.def("use_portable", &use_portable);
    m.def("tile", &tile, nb::call_guard<nb::gil_scoped_release>());
    m.def("pairs", &pairs, nb::call_guard<nb::gil_scoped_release>());
    m.def("panel", &panel, nb::call_guard<nb::gil_scoped_release>());
    m.def("csr", &csr, nb::call_guard<nb::gil_scoped_release>());
    m.def("bitmask", &bitmask, nb::call_guard<nb::gil_scoped_release>());
}
