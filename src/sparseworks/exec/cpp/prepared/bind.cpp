// Prepared products: what Python checked once is compared here at each call, for a third of what comparing costs in Python.
#include <vector>

#include "../bind.h"

namespace sparseworks {
namespace {

nb::object owned(PyObject* made) {
    if (!made) throw nb::python_error();
    return nb::steal(made);
}

// Names of a tensor's attributes and methods, made once and kept.
struct Names {
    const nb::object dtype = name("dtype"), is_cpu = name("is_cpu"), is_contiguous = name("is_contiguous"), numel = name("numel"),
                     data_ptr = name("data_ptr"), version = name("_version"), new_empty = name("new_empty");
    static nb::object name(const char* text) { return owned(PyUnicode_InternFromString(text)); }
};
const Names& names() {
    static const Names* kept = new Names;  // never freed: at exit there is no interpreter to free them
    return *kept;
}

nb::object attribute(nb::handle of, const nb::object& name) { return owned(PyObject_GetAttr(of.ptr(), name.ptr())); }
nb::object result(nb::handle of, const nb::object& method) { return owned(PyObject_CallMethodNoArgs(of.ptr(), method.ptr())); }

int64_t number(const nb::object& from) {
    const int64_t n = PyLong_AsLongLong(from.ptr());
    if (n == -1 && PyErr_Occurred()) throw nb::python_error();
    return n;
}

// A tensor that the product reads where it lay when it was checked. Its memory is held, so that no other can come to lie there.
struct Watched {
    nb::object tensor, memory, address;
    int64_t place, version;  // version -1: an inference tensor, which keeps no count of writes

    explicit Watched(nb::object t)
        : tensor(t), memory(t.attr("untyped_storage")()), address(result(t, names().data_ptr)), place(number(address)),
          version(nb::cast<bool>(t.attr("is_inference")()) ? -1 : number(attribute(t, names().version))) {}

    bool there() const { return number(result(tensor, names().data_ptr)) == place; }
    bool unwritten() const { return version < 0 || number(attribute(tensor, names().version)) == version; }
};

class Prepared {
  public:
    // `run(x, y, bias, rows, threads(), *arguments)` is a kernel; the output has `size`; `parts` are the buffers called `keys`;
    // `bias` is None or a float32 vector; `held` is whatever else the addresses in `arguments` belong to.
    Prepared(nb::object run, nb::tuple arguments, nb::tuple keys, nb::tuple parts, nb::object bias, nb::tuple size, int64_t rows,
             nb::object held, nb::object float32, nb::object threads)
        : run_(run), held_(held), float32_(float32), threads_(threads), rows_(nb::int_(rows)), none_(nb::int_(0)) {
        for (nb::handle a : arguments) arguments_.push_back(nb::borrow(a));
        for (nb::handle s : size) size_.push_back(nb::borrow(s));
        for (nb::handle k : keys) keys_.push_back(nb::borrow(k));
        for (nb::handle p : parts) parts_.emplace_back(nb::borrow(p));
        if (bias.is_none()) return;
        bias_.emplace_back(bias);
        out_ = number(result(bias, names().numel));
    }

    // y; None where this input must go the long way; False where a buffer or the bias is no longer what it was.
    nb::object multiply(nb::handle x, nb::handle bias, nb::dict buffers) const {
        if (!same(buffers) || !same(bias)) return nb::bool_(false);
        if (!readable(x)) return nb::none();
        const nb::object y = output(x);
        run(result(x, names().data_ptr), result(y, names().data_ptr));
        return y;
    }

    // From and to memory of the caller's that has the right size; False, and nothing done, where the call must be forgotten.
    bool multiply_at(nb::object x, nb::object y, nb::handle bias, nb::dict buffers) const {
        if (!same(buffers) || !same(bias)) return false;
        run(x, y);
        return true;
    }

  private:
    void run(const nb::object& from, const nb::object& to) const {
        const nb::object threads = owned(PyObject_CallNoArgs(threads_.ptr()));
        std::vector<PyObject*> given{from.ptr(), to.ptr(), (bias_.empty() ? none_ : bias_[0].address).ptr(), rows_.ptr(),
                                     threads.ptr()};
        for (const nb::object& a : arguments_) given.push_back(a.ptr());
        owned(PyObject_Vectorcall(run_.ptr(), given.data(), given.size(), nullptr));
    }
    bool same(nb::dict buffers) const {
        for (size_t i = 0; i < parts_.size(); ++i) {
            const PyObject* found = PyDict_GetItemWithError(buffers.ptr(), keys_[i].ptr());
            if (!found && PyErr_Occurred()) throw nb::python_error();
            if (found != parts_[i].tensor.ptr() || !parts_[i].there() || !parts_[i].unwritten()) return false;
        }
        return true;
    }
    // What is written to the bias is read; only its place, size and form matter.
    bool same(nb::handle bias) const {
        if (bias_.empty()) return bias.is_none();
        return bias.is(bias_[0].tensor) && bias_[0].there() && number(result(bias, names().numel)) == out_ &&
               attribute(bias, names().dtype).is(float32_) && result(bias, names().is_contiguous).is(Py_True);
    }
    bool readable(nb::handle x) const {
        return attribute(x, names().dtype).is(float32_) && attribute(x, names().is_cpu).is(Py_True) &&
               result(x, names().is_contiguous).is(Py_True);
    }
    nb::object output(nb::handle x) const {  // loose numbers: torch takes twice as long to read a tuple
        std::vector<PyObject*> given{x.ptr()};
        for (const nb::object& s : size_) given.push_back(s.ptr());
        return owned(PyObject_VectorcallMethod(names().new_empty.ptr(), given.data(), given.size(), nullptr));
    }

    nb::object run_, held_, float32_, threads_, rows_, none_;
    std::vector<nb::object> arguments_, size_, keys_;
    std::vector<Watched> parts_, bias_;  // of bias at most one
    int64_t out_ = 0;
};

}  // namespace

void bind_prepared(nb::module_& m) {
    nb::class_<Prepared>(m, "Prepared")
        .def(nb::init<nb::object, nb::tuple, nb::tuple, nb::tuple, nb::object, nb::tuple, int64_t, nb::object, nb::object, nb::object>(),
             nb::arg("run"), nb::arg("arguments"), nb::arg("keys"), nb::arg("parts"), nb::arg("bias").none(), nb::arg("size"),
             nb::arg("rows"), nb::arg("held").none(), nb::arg("float32"), nb::arg("threads"))
        .def("multiply", &Prepared::multiply, nb::arg("x"), nb::arg("bias").none(), nb::arg("buffers"))
        .def("multiply_at", &Prepared::multiply_at, nb::arg("x"), nb::arg("y"), nb::arg("bias").none(), nb::arg("buffers"));
}

}  // namespace sparseworks
