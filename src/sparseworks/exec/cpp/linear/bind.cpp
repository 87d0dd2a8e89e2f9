// Products with packed weights: arguments of each format's kernel, and which one the processor runs.
#include <nanobind/stl/vector.h>

#include "../bind.h"
#include "linear.h"

namespace sparseworks {
namespace {

void tile(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16, Address ptr,
          Address columns, Address values, Address row_of, int64_t k_block, int64_t row_block) {
    SW_RUN(tile, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, bf16, threads},
                at<int32_t>(ptr), at<uint8_t>(columns), at<void>(values), at<uint8_t>(row_of), k_block, row_block});
}

void pairs(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, Address ptr,
           Address columns, Address values, Address row_of, Address scale, int64_t limit, int64_t k_block,
           int64_t row_block) {
    SW_RUN(pairs, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, false, threads},
                 at<int32_t>(ptr), at<uint8_t>(columns), at<int16_t>(values), at<uint8_t>(row_of), at<float>(scale),
                 limit, k_block, row_block});
}

void panel(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16, Address ptr,
           Address columns, Address values, int64_t height, int64_t k_block, Address scale) {
    SW_RUN(panel, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, bf16, threads},
                 at<int32_t>(ptr), at<uint16_t>(columns), at<void>(values), height, k_block, at<float>(scale)});
}

void csr(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16, Address ptr,
         Address columns, Address values, int64_t slots, Address scale) {
    SW_RUN(csr, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, bf16, threads},
               at<int32_t>(ptr), at<uint16_t>(columns), at<void>(values), slots, at<float>(scale)});
}

void segmented(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16,
              Address starts, Address columns, Address values, Address scale) {
    SW_RUN(segmented, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, bf16, threads},
                      at<int32_t>(starts), at<uint8_t>(columns), at<void>(values), at<float>(scale)});
}

void bitmask(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16,
             Address ptr, Address bits, Address values, int64_t row_bytes, int64_t per_row, Address scale) {
    SW_RUN(bitmask, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, bf16, threads},
                   at<int32_t>(ptr), at<uint8_t>(bits), at<void>(values), row_bytes, per_row,
                     at<float>(scale)});
}

void groups4(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, Address ptr, Address codes,
             Address scale, Address zero, Address columns, bool wide) {
    SW_RUN(groups4, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, false, threads}, at<int32_t>(ptr),
                     at<uint8_t>(codes), at<uint16_t>(scale), at<uint8_t>(zero), at<void>(columns), wide});
}

void int8(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, Address weight,
          Address scale, int64_t limit) {
    SW_RUN(int8, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, false, threads}, at<int8_t>(weight),
                  at<float>(scale), limit});
}

void gemv(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, int stored,
          Address weight, Address scale) {
    SW_RUN(gemv, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, false, threads}, at<void>(weight),
                  at<float>(scale), static_cast<Stored>(stored)});
}

void inmajor(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, int stored,
             Address weight, Address scale, Address threshold) {
    SW_RUN(inmajor, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, false, threads}, at<void>(weight),
                     at<float>(scale), static_cast<Stored>(stored), at<float>(threshold)});
}

void inbits(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, int stored, Address ptr,
            Address bits, Address values, Address scale, Address threshold) {
    SW_RUN(inbits, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, false, threads}, at<int32_t>(ptr),
                    at<uint8_t>(bits), at<void>(values), at<float>(scale), static_cast<Stored>(stored), at<float>(threshold)});
}

void nmg(Address x, Address y, Address bias, int64_t rows, int threads, int64_t in, int64_t out, bool bf16, Address choices,
         Address order, Address values, int64_t n, int64_t m, int64_t g, int64_t count) {
    SW_RUN(nmg, {{at<float>(x), to<float>(y), at<float>(bias), rows, in, out, bf16, threads}, at<uint8_t>(choices),
                 at<void>(order), at<void>(values), n, m, g, count});
}

constexpr size_t kMatrix = 11;  // numbers that describe a matrix

Matrix matrix(const std::vector<int64_t>& n, size_t i) {
    const auto address = [&](size_t k) { return static_cast<Address>(n[i * kMatrix + k]); };
    const auto value = [&](size_t k) { return n[i * kMatrix + k]; };
    return {value(0), value(1), at<int32_t>(address(2)), at<uint8_t>(address(3)), at<int16_t>(address(4)),
            at<uint8_t>(address(5)), at<float>(address(6)), value(7), value(8), value(9), at<float>(address(10))};
}

// `matrices`: q, k, v, o, up, down, eleven numbers each in the order of Matrix; `norms`: weight, bias of both.
void encoder(Address x, Address y, Address mask, int64_t batch, int64_t tokens, int threads, int64_t heads, float scale,
             const std::vector<int64_t>& matrices, const std::vector<Address>& norms, float eps1, float eps2,
             int64_t activation) {
    if (matrices.size() != 6 * kMatrix || norms.size() != 4) {
        throw nb::value_error("not a layer: six matrices and two norms");
    }
    const EncoderLayer a{at<float>(x), to<float>(y), at<float>(mask), batch, tokens, heads, scale,
                         matrix(matrices, 0), matrix(matrices, 1), matrix(matrices, 2), matrix(matrices, 3),
                         matrix(matrices, 4), matrix(matrices, 5), {at<float>(norms[0]), at<float>(norms[1]), eps1},
                         {at<float>(norms[2]), at<float>(norms[3]), eps2}, activation, threads};
    nb::gil_scoped_release release;
    SW_RUN(encoder, a);
}

}  // namespace

void bind_linear(nb::module_& m) {
    m.def("tile", &tile, nb::call_guard<nb::gil_scoped_release>());
    m.def("pairs", &pairs, nb::call_guard<nb::gil_scoped_release>());
    m.def("panel", &panel, nb::call_guard<nb::gil_scoped_release>());
    m.def("csr", &csr, nb::call_guard<nb::gil_scoped_release>());
    m.def("bitmask", &bitmask, nb::call_guard<nb::gil_scoped_release>());
    m.def("groups4", &groups4, nb::call_guard<nb::gil_scoped_release>());
    m.def("segmented", &segmented, nb::call_guard<nb::gil_scoped_release>());
    m.def("inmajor", &inmajor, nb::call_guard<nb::gil_scoped_release>());
    m.def("inbits", &inbits, nb::call_guard<nb::gil_scoped_release>());
    m.def("gemv", &gemv, nb::call_guard<nb::gil_scoped_release>());
    m.def("nmg", &nmg, nb::call_guard<nb::gil_scoped_release>());
    m.def("int8", &int8, nb::call_guard<nb::gil_scoped_release>());
    m.def("encoder", &encoder);
}

}  // namespace sparseworks
