// Between sparse products: arguments of each kernel.
#include "../bind.h"
#include "between.h"

namespace sparseworks {
namespace {

void run_rms_norm(Address x, Address added, Address weight, Address total, Address y, int64_t rows, int64_t width, float eps,
                  int threads) {
    SW_RUN(rms_norm,
           {at<float>(x), at<float>(added), at<float>(weight), to<float>(total), to<float>(y), rows, width, eps, threads});
}

void run_gated(Address gate, Address up, Address y, int64_t count, int activation, int threads) {
    SW_RUN(gated, {at<float>(gate), at<float>(up), to<float>(y), count, activation, threads});
}

void run_add(Address x, Address y, int64_t count) { SW_RUN(add, {at<float>(x), to<float>(y), count}); }

}  // namespace

void bind_between(nb::module_& m) {
    m.def("rms_norm", &run_rms_norm);
    m.def("gated", &run_gated);
    m.def("add", &run_add);
}

}  // namespace sparseworks
