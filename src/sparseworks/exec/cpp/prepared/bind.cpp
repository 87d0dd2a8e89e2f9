// Prepared products: what Python checked once is compared here at each call, for a fraction of what comparing costs in Python.
#include <vector>

#include "tensors.h"

namespace sparseworks {
namespace {

class Prepared {
  public:
    // `run(x, y, bias, rows, threads(), *arguments)` is a kernel; the output has `size`; `parts` are the buffers called `keys`;
    // `bias` is None or a float32 vector; `held` is whatever else the addresses in `arguments` belong to.
    Prepared(nb::object run, nb::tuple arguments, nb::tuple keys, nb::tuple parts, nb::object bias, nb::tuple size, int64_t rows,
             nb::object held, const Reader& reader, nb::object threads)
        : run_(run), held_(held), threads_(threads), rows_(nb::int_(rows)), bias_address_(nb::int_(0)), reader_(reader) {
        for (nb::handle a : arguments) arguments_.push_back(nb::borrow(a));
        for (nb::handle s : size) size_.push_back(nb::borrow(s));
        for (nb::handle k : keys) keys_.push_back(nb::borrow(k));
        for (nb::handle p : parts) parts_.emplace_back(nb::borrow(p), reader_);
        if (bias.is_none()) return;
        bias_.emplace_back(bias, reader_);
        bias_address_ = nb::int_(bias_[0].at.place);
        if (!bias_[0].at.plain) throw nb::value_error("a bias that is not a float32 vector on the CPU");
    }

    // y; None where this input must go the long way; False where a buffer or the bias is no longer what it was.
    nb::object multiply(nb::handle x, nb::handle bias, nb::handle buffers) const {
        if (!same(bias) || !same_parts(buffers)) return nb::bool_(false);
        const Seen input = reader_.see(x);
        if (!input.plain || input.place <= 0) return nb::none();
        const nb::object y = output(x);
        run(nb::int_(input.place), result(y, names().data_ptr));
        return y;
    }

    // From and to memory of the caller's that has the right size; False, and nothing done, where the call must be forgotten.
    bool multiply_at(nb::object x, nb::object y, nb::handle bias, nb::handle buffers) const {
        if (!same(bias) || !same_parts(buffers)) return false;
        run(x, y);
        return true;
    }

  private:
    void run(const nb::object& from, const nb::object& to) const {
        const nb::object threads = result(threads_);
        std::vector<PyObject*> given{from.ptr(), to.ptr(), bias_address_.ptr(), rows_.ptr(), threads.ptr()};
        for (const nb::object& a : arguments_) given.push_back(a.ptr());
        owned(PyObject_Vectorcall(run_.ptr(), given.data(), given.size(), nullptr));
    }
    bool same_parts(nb::handle buffers) const {
        for (size_t i = 0; i < parts_.size(); ++i) {
            if (!entry(buffers, keys_[i]).is(parts_[i].tensor)) return false;
            if (!parts_[i].unmoved(reader_) || !parts_[i].unwritten()) return false;
        }
        return true;
    }
    // What is written to the bias is read; only its place, size and form matter.
    bool same(nb::handle bias) const {
        return bias_.empty() ? bias.is_none() : bias.is(bias_[0].tensor) && bias_[0].unmoved(reader_);
    }
    nb::object output(nb::handle x) const {  // loose numbers: torch takes twice as long to read a tuple
        std::vector<PyObject*> given{x.ptr()};
        for (const nb::object& s : size_) given.push_back(s.ptr());
        return owned(PyObject_VectorcallMethod(names().new_empty.ptr(), given.data(), given.size(), nullptr));
    }

    nb::object run_, held_, threads_, rows_, bias_address_;
    Reader reader_;
    std::vector<nb::object> arguments_, size_, keys_;
    std::vector<Watched> parts_, bias_;  // of bias at most one
};

// A layer's call without `nn.Module.__call__`, which takes as long as all checks here: for as long as that would do nothing but
// call `forward`, and `forward` nothing but run what it prepared.
class Entrance {
  public:
    // `hooks`: names of a module's dictionaries of hooks; `global_hooks`: those of all modules; `quiet`: functions that say, by what
    // is false, that torch transforms nothing; `grad`: whether it records.
    Entrance(nb::object tensor, nb::object module, nb::tuple hooks, nb::tuple global_hooks, nb::tuple quiet, nb::object grad)
        : tensor_(tensor), module_(module), call_(attribute(module, names().call)), grad_(grad) {
        for (nb::handle h : hooks) hooks_.push_back(nb::borrow(h));
        for (nb::handle h : global_hooks) global_hooks_.push_back(nb::borrow(h));
        for (nb::handle q : quiet) quiet_.push_back(nb::borrow(q));
    }

    // y, or None: then `nn.Module.__call__` is to be called.
    nb::object enter(nb::handle module, nb::handle x) const {
        if (!x.type().is(tensor_)) return nb::none();
        const nb::object state = owned(PyObject_GenericGetDict(module.ptr(), nullptr));
        if (!untouched(module, state) || !quiet()) return nb::none();
        const nb::object calls = entry(state, names().calls), parameters = entry(state, names().parameters),
                         buffers = entry(state, names().buffers);
        if (!calls || !parameters || !buffers) return nb::none();
        const nb::object call = entry(calls, attribute(x, names().shape)), bias = entry(parameters, names().bias);
        if (!call || !bias || !nb::isinstance<Prepared>(call) || recorded(x, bias)) return nb::none();
        const nb::object y = nb::inst_ptr<Prepared>(call)->multiply(x, bias, buffers);
        if (!y.is(Py_False)) return y;
        PyDict_Clear(calls.ptr());
        return nb::none();
    }

  private:
    bool untouched(nb::handle module, nb::handle state) const {
        const nb::handle type = module.type();
        if (entry(state, names().forward) || !attribute(type, names().forward).is(attribute(type, names().prepares))) return false;
        if (!attribute(module_, names().call).is(call_)) return false;
        const nb::object compiled = entry(state, names().compiled);
        if (compiled && !compiled.is_none()) return false;
        for (const nb::object& name : hooks_) {
            const nb::object hooks = entry(state, name);
            if (!hooks || truth(hooks)) return false;
        }
        return true;
    }
    bool quiet() const {
        for (const nb::object& hooks : global_hooks_) {
            if (truth(hooks)) return false;
        }
        for (const nb::object& ask : quiet_) {
            if (truth(result(ask))) return false;
        }
        return true;
    }
    bool recorded(nb::handle x, nb::handle bias) const {
        if (!truth(result(grad_))) return false;
        return truth(attribute(x, names().requires_grad)) || (!bias.is_none() && truth(attribute(bias, names().requires_grad)));
    }

    nb::object tensor_, module_, call_, grad_;
    std::vector<nb::object> hooks_, global_hooks_, quiet_;
};

// One for the process, and never freed: see `names`.
const Entrance* entrance = nullptr;

void open_entrance(nb::object tensor, nb::object module, nb::tuple hooks, nb::tuple global_hooks, nb::tuple quiet, nb::object grad) {
    entrance = new Entrance(tensor, module, hooks, global_hooks, quiet, grad);
}
nb::object enter(nb::handle module, nb::handle x) { return entrance->enter(module, x); }

}  // namespace

void bind_prepared(nb::module_& m) {
    nb::class_<Reader>(m, "Reader").def(nb::init<nb::handle, nb::object>(), nb::arg("exchange").none(), nb::arg("float32"));
    nb::class_<Prepared>(m, "Prepared")
        .def(nb::init<nb::object, nb::tuple, nb::tuple, nb::tuple, nb::object, nb::tuple, int64_t, nb::object, const Reader&,
                      nb::object>(),
             nb::arg("run"), nb::arg("arguments"), nb::arg("keys"), nb::arg("parts"), nb::arg("bias").none(), nb::arg("size"),
             nb::arg("rows"), nb::arg("held").none(), nb::arg("reader"), nb::arg("threads"))
        .def("__call__", &Prepared::multiply, nb::arg("x"), nb::arg("bias").none(), nb::arg("buffers"))
        .def("multiply_at", &Prepared::multiply_at, nb::arg("x"), nb::arg("y"), nb::arg("bias").none(), nb::arg("buffers"));
    m.def("open_entrance", &open_entrance, nb::arg("tensor"), nb::arg("module"), nb::arg("hooks"), nb::arg("global_hooks"),
          nb::arg("quiet"), nb::arg("grad"));
    m.def("enter", &enter, nb::arg("module"), nb::arg("x").none());
}

}  // namespace sparseworks
