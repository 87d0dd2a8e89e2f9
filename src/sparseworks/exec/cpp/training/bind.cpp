// Sparse training: building an index, activations into tiles, and the three products.
#include <nanobind/stl/vector.h>

#include <vector>

#include "../bind.h"
#include "training.h"

namespace sparseworks {
namespace {

Rows rows_of(Address ptr, Address columns, int64_t rows, int64_t width) {
    return {at<int32_t>(ptr), at<int32_t>(columns), rows, width};
}

Index index(Address columns, Address count, Address row_of, Address first, int64_t rows, int64_t width, int64_t row_block,
            int64_t k_block) {
    return {at<uint8_t>(columns), at<uint8_t>(count), at<uint8_t>(row_of), at<int32_t>(first), rows, width, row_block, k_block};
}

void transpose(Address ptr, Address columns, int64_t rows, int64_t width, Address ptr_t, Address columns_t, Address order) {
    transpose_order(rows_of(ptr, columns, rows, width), to<int32_t>(ptr_t), to<int32_t>(columns_t), to<int32_t>(order));
}

void cut(Address ptr, Address entries, int64_t rows, int64_t width, int64_t row_block, int64_t k_block, Address columns,
         Address count, Address row_of, Address first, Address order) {
    cut_segments(rows_of(ptr, entries, rows, width), index(0, 0, 0, 0, rows, width, row_block, k_block), to<uint8_t>(columns),
                 to<uint8_t>(count), to<uint8_t>(row_of), to<int32_t>(first), to<int32_t>(order));
}

void uncut(Address columns, Address count, Address row_of, Address first, int64_t rows, int64_t width, int64_t row_block,
           int64_t k_block, Address ptr, Address entries, Address order) {
    uncut_segments(index(columns, count, row_of, first, rows, width, row_block, k_block), to<int32_t>(ptr), to<int32_t>(entries),
                   to<int32_t>(order));
}

void find(Address ptr_a, Address columns_a, Address ptr_b, Address columns_b, int64_t rows, int64_t width, Address found) {
    find_entries(rows_of(ptr_a, columns_a, rows, width), rows_of(ptr_b, columns_b, rows, width), to<int32_t>(found));
}

void relate(Address first, Address middle, Address last, int64_t n, Address result) {
    relate_orders(at<int32_t>(first), at<int32_t>(middle), at<int32_t>(last), n, to<int32_t>(result));
}

void trace(Address before, Address found, Address order, int64_t n, Address result) {
    trace_entries(at<int32_t>(before), at<int32_t>(found), at<int32_t>(order), n, to<int32_t>(result));
}

void move(Address from, Address source, Address target, int64_t n) {
    move_values(at<float>(from), at<int32_t>(source), to<float>(target), n);
}

void tiles(Address matrix, Address tiles, int64_t tokens, int64_t width, int64_t positions, int threads) {
    SW_RUN(to_tiles, {to<float>(matrix), to<float>(tiles), tokens, width, positions, threads});
}

void run_reorder(Address from, Address order, Address target, int64_t entries, int threads) {
    SW_RUN(reorder, {at<float>(from), at<int32_t>(order), to<float>(target), entries, threads});
}

void run_spmm(Address x, Address values, Address bias, Address y, int64_t tokens, int64_t positions, int threads,
              Address columns, Address count, Address row_of, Address first, int64_t rows, int64_t width, int64_t row_block, int64_t k_block) {
    SW_RUN(spmm, {at<float>(x), at<float>(values), at<float>(bias), to<float>(y),
                  index(columns, count, row_of, first, rows, width, row_block, k_block), tokens, positions, threads});
}

void run_sddmm(Address dy, Address x, Address gradient, int64_t tokens, int threads, Address columns, Address count,
               Address row_of, Address first, int64_t rows, int64_t width, int64_t row_block, int64_t k_block) {
    SW_RUN(sddmm, {at<float>(dy), at<float>(x), to<float>(gradient),
                   index(columns, count, row_of, first, rows, width, row_block, k_block), tokens, threads});
}

constexpr size_t kIndex = 8;  // numbers that describe an index

Index nth(const std::vector<int64_t>& n, size_t i) {
    const auto value = [&](size_t k) { return n[i * kIndex + k]; };
    const auto address = [&](size_t k) { return static_cast<Address>(value(k)); };
    return index(address(0), address(1), address(2), address(3), value(4), value(5), value(6), value(7));
}

using Addresses = std::vector<Address>;

void expect(bool fits) {
    if (!fits) throw nb::value_error("not the numbers of this layer");
}

// `indices`: eight numbers each in the order of Index: the index, its transpose, and both as they are written; `data`: order, kept,
// grown, new order, source; `sizes`: entries, growing, new entries.
bool exchange(const std::vector<int64_t>& indices, const Addresses& data, const std::vector<int64_t>& sizes) {
    expect(indices.size() == 4 * kIndex && data.size() == 5 && sizes.size() == 3);
    const Exchange a{nth(indices, 0), nth(indices, 1), at<int32_t>(data[0]), sizes[0], at<uint8_t>(data[1]), at<int64_t>(data[2]),
                     sizes[1], nth(indices, 2), nth(indices, 3), to<int32_t>(data[3]), to<int32_t>(data[4]), sizes[2]};
    nb::gil_scoped_release release;
    return exchange_entries(a);
}

// (weight, bias) or nothing.
Norm norm_of(const Addresses& n, float eps) {
    expect(n.empty() || n.size() == 2);
    return n.empty() ? Norm{} : Norm{at<float>(n[0]), at<float>(n[1]), eps};
}

// `data`: x, add, y, kept, scale; `index`: eight numbers in the order of Index; `weights`: values and bias.
void run_layer(const Addresses& data, const std::vector<int64_t>& index, const Addresses& weights, const Addresses& norm, float eps,
               int64_t tokens, int threads) {
    expect(data.size() == 5 && index.size() == kIndex && weights.size() == 2);
    const Layer a{at<float>(data[0]), at<float>(data[1]), to<float>(data[2]), to<float>(data[3]), to<float>(data[4]), nth(index, 0),
                  at<float>(weights[0]), at<float>(weights[1]), norm_of(norm, eps), tokens, threads};
    nb::gil_scoped_release release;
    SW_RUN(layer, a);
}

// `data`: dy, add, kept, scale, dx, gradients; `indices`: the index and its transpose; `values`: in the order of the transpose.
void run_layer_gradient(const Addresses& data, const std::vector<int64_t>& indices, Address values, const Addresses& norm, float eps,
                        int64_t tokens, bool wants_values, bool wants_bias, int threads) {
    expect(data.size() == 6 && indices.size() == 2 * kIndex);
    const LayerGradient a{at<float>(data[0]), at<float>(data[1]), at<float>(data[2]), at<float>(data[3]), to<float>(data[4]),
                          to<float>(data[5]), nth(indices, 0), nth(indices, 1), at<float>(values), norm_of(norm, eps), tokens,
                          wants_values, wants_bias, threads};
    nb::gil_scoped_release release;
    SW_RUN(layer_gradient, a);
}

// `data` as for a layer; `indices`: up and down; `weights`: values and bias of up, then of down.
void run_mlp(const Addresses& data, const std::vector<int64_t>& indices, const Addresses& weights, const Addresses& norm, float eps,
             int64_t tokens, int activation, int threads) {
    expect(data.size() == 5 && indices.size() == 2 * kIndex && weights.size() == 4);
    const Mlp a{at<float>(data[0]), at<float>(data[1]), to<float>(data[2]), to<float>(data[3]), to<float>(data[4]), norm_of(norm, eps),
                nth(indices, 0), nth(indices, 1), at<float>(weights[0]), at<float>(weights[1]), at<float>(weights[2]),
                at<float>(weights[3]), tokens, activation, threads};
    nb::gil_scoped_release release;
    SW_RUN(mlp, a);
}

// `indices`: up, down and their transposes; `weights`: values and bias of up, values in the order of the transposes.
void run_mlp_gradient(const Addresses& data, const std::vector<int64_t>& indices, const Addresses& weights, const Addresses& norm,
                      float eps, int64_t tokens, int activation, int threads) {
    expect(data.size() == 6 && indices.size() == 4 * kIndex && weights.size() == 4);
    const MlpGradient a{at<float>(data[0]), at<float>(data[1]), at<float>(data[2]), at<float>(data[3]), to<float>(data[4]),
                        to<float>(data[5]), norm_of(norm, eps), nth(indices, 0), nth(indices, 1), nth(indices, 2), nth(indices, 3),
                        at<float>(weights[0]), at<float>(weights[1]), at<float>(weights[2]), at<float>(weights[3]), tokens, activation,
                        threads};
    nb::gil_scoped_release release;
    SW_RUN(mlp_gradient, a);
}

}  // namespace

void bind_training(nb::module_& m) {
    const nb::call_guard<nb::gil_scoped_release> free;
    m.def("transpose", &transpose, free);
    m.def("cut", &cut, free);
    m.def("uncut", &uncut, free);
    m.def("find", &find, free);
    m.def("exchange", &exchange);
    m.def("move", &move, free);
    m.def("relate", &relate, free);
    m.def("trace", &trace, free);
    m.def("to_tiles", &tiles, free);
    m.def("reorder", &run_reorder, free);
    m.def("spmm", &run_spmm, free);
    m.def("layer", &run_layer);
    m.def("layer_gradient", &run_layer_gradient);
    m.def("mlp", &run_mlp);
    m.def("mlp_gradient", &run_mlp_gradient);
    m.def("sddmm", &run_sddmm, free);
}

}  // namespace sparseworks
