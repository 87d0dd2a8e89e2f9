// Sparse codes: arguments of each kernel.
#include "../bind.h"
#include "cholesky.h"
#include "codes.h"
#include "descent.h"

namespace sparseworks {
namespace {

void offer_tile(Address tile, int64_t rows, int64_t cols, int64_t first, int64_t k, int64_t size, bool relu, bool last,
                Address values, Address indices, Address bad, int threads) {
    SW_RUN(offer, {at<float>(tile), rows, cols, first, k, size, relu, last, to<float>(values), to<int64_t>(indices),
                   to<int32_t>(bad), threads});
}

void decode_codes(Address indices, int64_t rows, int64_t k, int64_t width, int64_t features, int threads, Address values,
                  Address dictionary, Address bias, Address y) {
    SW_RUN(decode, {{at<int64_t>(indices), rows, k, width, features, threads}, at<float>(values), at<float>(dictionary),
                    at<float>(bias), to<float>(y)});
}

void grad_values(Address indices, int64_t rows, int64_t k, int64_t width, int64_t features, int threads, Address grad,
                 Address dictionary, Address out) {
    SW_RUN(decode_values, {{at<int64_t>(indices), rows, k, width, features, threads}, at<float>(grad),
                           at<float>(dictionary), to<float>(out)});
}

void grad_dictionary(Address indices, int64_t rows, int64_t k, int64_t width, int64_t features, int threads, Address grad,
                     Address values, Address out) {
    SW_RUN(decode_dictionary, {{at<int64_t>(indices), rows, k, width, features, threads}, at<float>(grad),
                               at<float>(values), to<float>(out)});
}

void append(Address factor, Address known, int64_t signals, int64_t size, int64_t most, int threads, Address gram,
            Address right, int64_t atoms, Address added, Address chosen, Address grown, float least) {
    SW_RUN(cholesky_append, {{signals, size, most, to<float>(factor), to<float>(known), threads}, at<float>(gram),
                             at<float>(right), atoms, at<int64_t>(added), to<int32_t>(chosen), to<uint8_t>(grown), least});
}

void solve(Address factor, Address known, int64_t signals, int64_t size, int64_t most, int threads, Address out) {
    SW_RUN(cholesky_solve, {{signals, size, most, to<float>(factor), to<float>(known), threads}, to<float>(out)});
}

template <class T>
Descent<T> descent(Address gram, Address right, Address slopes, Address scale, Address tolerance, Address z, Address epochs,
                   int64_t rows, int64_t atoms, int64_t most, int kind, double ridge, double gamma, int threads) {
    return {at<T>(gram), at<T>(right), at<T>(slopes), at<T>(scale), at<T>(tolerance), to<T>(z), to<int64_t>(epochs),
            rows, atoms, most, kind, ridge, gamma, threads};
}

template <class... Arguments>
void descend(bool wide, Arguments... arguments) {
    if (wide) SW_RUN(descend_double, descent<double>(arguments...));
    else SW_RUN(descend_single, descent<float>(arguments...));
}

template <class T>
bool run_columns(Address atoms, Address kept, Address slopes, Address curvature, Address z, Address residual, Address visits,
                 int64_t count, int64_t features, int64_t most, double goal, int kind, double ridge, double gamma) {
    bool done = false;
    const ColumnDescent<T> given{at<T>(atoms), at<int64_t>(kept), at<T>(slopes), at<T>(curvature), to<T>(z), to<T>(residual),
                                 to<int64_t>(visits), &done, count, features, most, goal, kind, ridge, gamma};
    if constexpr (sizeof(T) == 8) SW_RUN(descend_columns_double, given);
    else SW_RUN(descend_columns_single, given);
    return done;
}

template <class... Arguments>
bool descend_columns(bool wide, Arguments... arguments) {
    return wide ? run_columns<double>(arguments...) : run_columns<float>(arguments...);
}

}  // namespace

void bind_codes(nb::module_& m) {
    m.def("codes_offer", &offer_tile);
    m.def("codes_decode", &decode_codes);
    m.def("codes_grad_values", &grad_values);
    m.def("codes_grad_dictionary", &grad_dictionary);
    m.def("codes_descend",
          &descend<Address, Address, Address, Address, Address, Address, Address, int64_t, int64_t, int64_t, int, double,
                   double, int>);
    m.def("codes_descend_columns",
          &descend_columns<Address, Address, Address, Address, Address, Address, Address, int64_t, int64_t, int64_t, double,
                           int, double, double>);
    m.def("cholesky_append", &append);
    m.def("cholesky_solve", &solve);
}

}  // namespace sparseworks
