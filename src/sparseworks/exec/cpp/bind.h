// Bindings: pointers come as integers (a DLPack exchange costs ten times the call). One function per folder adds its kernels.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>

#include "isa.h"

namespace nb = nanobind;

namespace sparseworks {

using Address = uint64_t;

template <class T>
const T* at(Address address) {
    return reinterpret_cast<const T*>(address);
}

template <class T>
T* to(Address address) {
    return reinterpret_cast<T*>(address);
}

void bind_linear(nb::module_& m);
void bind_conv(nb::module_& m);
void bind_training(nb::module_& m);
void bind_search(nb::module_& m);
void bind_codes(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_between(nb::module_& m);
void bind_prepared(nb::module_& m);

}  // namespace sparseworks
