// The extension module: what it can do on this processor, and the kernels of each folder.
#include <cstdlib>
#include <string>

#include "bind.h"

namespace sparseworks {
namespace {

// AVX-512 has not been run by the developers: it is used only where SPARSEWORKS_ISA asks for it.
Isa choose() {
    const char* asked = std::getenv("SPARSEWORKS_ISA");
    const std::string wanted = asked ? asked : "";
#ifdef SPARSEWORKS_AVX2
    __builtin_cpu_init();
    if (wanted == "portable" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("bmi2")) {
        return Isa::base;
    }
#ifdef SPARSEWORKS_AVX512
    if (wanted == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return Isa::avx512;
    }
#endif
    return Isa::avx2;
#endif
    return Isa::base;
}

nb::dict features() {
    nb::dict facts;
    facts["isa"] = isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
#ifdef _OPENMP
    facts["openmp"] = true;
#else
    facts["openmp"] = false;
#endif
    facts["encoder"] = has_encoder();
    facts["version"] = 2;
    return facts;
}

// For tests: the portable kernels on a processor that has better ones.
void use_portable(bool yes) { isa = yes ? Isa::base : choose(); }

}  // namespace

Isa isa = choose();

}  // namespace sparseworks

NB_MODULE(_native, m) {
    m.def("features", &sparseworks::features);
    m.def("use_portable", &sparseworks::use_portable);
    sparseworks::bind_linear(m);
    sparseworks::bind_attention(m);
}
