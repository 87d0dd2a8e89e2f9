// Sparse convolutions.
#include <nanobind/stl/vector.h>

#include <vector>

#include "../bind.h"
#include "conv.h"

namespace sparseworks {
namespace {

// `sizes`: out, out_high, out_wide, blocks, then the numbers of Layout in its order.
void run(Address x, Address y, Address bias, int64_t images, int threads, Address starts, Address offsets, Address values,
         const std::vector<int64_t>& sizes) {
    if (sizes.size() != 15) throw nb::value_error("not the sizes of a convolution");
    const auto n = [&](size_t i) { return sizes[i]; };
    const Conv a{at<float>(x), to<float>(y), at<float>(bias), images, n(0), n(1), n(2), n(3), at<int32_t>(starts), at<int32_t>(offsets),
                 at<float>(values), {n(4), n(5), n(6), n(7), n(8), n(9), n(10), n(11), n(12), n(13), n(14)}, threads};
    nb::gil_scoped_release release;
    SW_RUN(conv, a);
}

}  // namespace

void bind_conv(nb::module_& m) { m.def("conv", &run); }

}  // namespace sparseworks
