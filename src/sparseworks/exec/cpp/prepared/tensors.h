// What calls that were prepared must know of torch's tensors, without linking libtorch: through the table of functions of DLPack
// where torch has one (a tenth of what its attributes cost), else attribute by attribute.
#pragma once
#include <nanobind/ndarray.h>

#include "../bind.h"

namespace sparseworks {

inline nb::object owned(PyObject* made) {
    if (!made) throw nb::python_error();
    return nb::steal(made);
}

// Names of attributes and methods, made once and kept.
struct Names {
    const nb::object dtype = name("dtype"), is_cpu = name("is_cpu"), is_contiguous = name("is_contiguous"), numel = name("numel"),
                     data_ptr = name("data_ptr"), version = name("_version"), new_empty = name("new_empty"), shape = name("shape"),
                     requires_grad = name("requires_grad"), forward = name("forward"), call = name("__call__"),
                     prepares = name("_prepares"), calls = name("_calls"), parameters = name("_parameters"), bias = name("bias"),
                     buffers = name("_buffers"), compiled = name("_compiled_call_impl");
    static nb::object name(const char* text) { return owned(PyUnicode_InternFromString(text)); }
};
inline const Names& names() {
    static const Names* kept = new Names;  // never freed: at exit there is no interpreter to free them
    return *kept;
}

inline nb::object attribute(nb::handle of, const nb::object& name) { return owned(PyObject_GetAttr(of.ptr(), name.ptr())); }
inline nb::object result(nb::handle function) { return owned(PyObject_CallNoArgs(function.ptr())); }
inline nb::object result(nb::handle of, const nb::object& method) {
    return owned(PyObject_CallMethodNoArgs(of.ptr(), method.ptr()));
}

inline bool truth(nb::handle of) {
    const int answer = PyObject_IsTrue(of.ptr());
    if (answer < 0) throw nb::python_error();
    return answer;
}

inline int64_t number(nb::handle from) {
    const int64_t n = PyLong_AsLongLong(from.ptr());
    if (n == -1 && PyErr_Occurred()) throw nb::python_error();
    return n;
}

// What lies under a name in a dictionary, or nothing.
inline nb::object entry(nb::handle dictionary, nb::handle name) {
    PyObject* found = PyDict_GetItemWithError(dictionary.ptr(), name.ptr());
    if (!found && PyErr_Occurred()) throw nb::python_error();
    return nb::borrow(found);
}

// Where a tensor lies (-1: nowhere that can be read), how many numbers of which type it has; `plain`: float32, contiguous, on the CPU.
struct Seen {
    int64_t place = -1, numel = 0, type = 0;
    bool plain = false;

    bool operator==(const Seen& other) const {
        return place == other.place && numel == other.numel && type == other.type && plain == other.plain;
    }
};

// Reads tensors of exactly the type torch.Tensor.
class Reader {
  public:
    // `exchange`: the capsule `torch.Tensor.__dlpack_c_exchange_api__`, or None.
    Reader(nb::handle exchange, nb::object float32) : float32_(float32) {
        if (exchange.is_none()) return;
        const auto* table = static_cast<const Table*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
        if (!table) throw nb::python_error();
        if (table->major == 1) view_ = table->view;
    }

    Seen see(nb::handle tensor) const {
        nb::dlpack::dltensor t;
        if (!view_) return seen_by_attributes(tensor);
        if (view_(tensor.ptr(), &t) == 0) return seen(t);
        PyErr_Clear();  // sparse, on a device without memory of its own, ...
        return {};
    }

  private:
    // The head of DLPackExchangeAPI, up to the one function that is used.
    struct Table {
        uint32_t major, minor;
        const void* earlier;
        void (*allocate)();
        void (*give)();
        void (*take)();
        int (*view)(void* tensor, nb::dlpack::dltensor* view);
    };

    static Seen seen(const nb::dlpack::dltensor& t) {
        int64_t numel = 1;
        bool together = true;
        for (int i = t.ndim - 1; i >= 0; --i) {
            together = together && (t.shape[i] == 1 || t.strides[i] == numel);
            numel *= t.shape[i];
        }
        const bool float32 = t.dtype == nb::dtype<float>(), cpu = t.device.device_type == nb::device::cpu::value;
        const auto place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data) + t.byte_offset);
        return {place, numel, t.dtype.code * 256 + t.dtype.bits, float32 && cpu && together};
    }

    Seen seen_by_attributes(nb::handle t) const {
        const Names& of = names();
        const nb::object type = attribute(t, of.dtype);  // of each type there is one object
        const bool plain = type.is(float32_) && attribute(t, of.is_cpu).is(Py_True) && result(t, of.is_contiguous).is(Py_True);
        const auto which = static_cast<int64_t>(reinterpret_cast<uintptr_t>(type.ptr()));
        return {number(result(t, of.data_ptr)), number(result(t, of.numel)), which, plain};
    }

    nb::object float32_;
    int (*view_)(void* tensor, nb::dlpack::dltensor* view) = nullptr;
};

// A tensor that a product reads where it lay when it was checked. Its memory is held, so that no other can come to lie there.
struct Watched {
    nb::object tensor, memory;
    Seen at;
    int64_t version;  // -1: an inference tensor, which keeps no count of writes

    Watched(nb::object t, const Reader& reader)
        : tensor(t), memory(t.attr("untyped_storage")()), at(reader.see(t)),
          version(nb::cast<bool>(t.attr("is_inference")()) ? -1 : number(attribute(t, names().version))) {}

    bool unmoved(const Reader& reader) const { return at.place >= 0 && reader.see(tensor) == at; }
    bool unwritten() const { return version < 0 || number(attribute(tensor, names().version)) == version; }
};

}  // namespace sparseworks
