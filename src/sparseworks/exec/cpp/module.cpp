// The extension module: what it can do on this processor, and the kernels of each folder.
#include <cstdlib>
#include <cstring>

#ifdef SPARSEWORKS_AVX2
#include <cpuid.h>
#endif

#include "bind.h"

namespace sparseworks {
namespace {

struct Named {
    Isa isa;
    const char* name;
};

// From the plainest to the fastest. `wide` is built for tests only.
constexpr Named kIsas[] = {
    {Isa::base, "portable"}, {Isa::wide, "wide"}, {Isa::avx2, "avx2"}, {Isa::avx512, "avx512"}};

#ifdef SPARSEWORKS_AVX2
// F16C, which older compilers cannot be asked for by name.
bool half_floats() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// Whether this build has the kernels of an instruction set, and this processor can run them.
bool available(Isa isa) {
#ifdef SPARSEWORKS_AVX2
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                      half_floats();
    if (isa == Isa::avx2) return avx2;
#else
    [[maybe_unused]] const bool avx2 = true;  // `wide` is then compiled for the baseline
#endif
#ifdef SPARSEWORKS_AVX512
    if (isa == Isa::avx512) {
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    }
#endif
#ifdef SPARSEWORKS_WIDE
    if (isa == Isa::wide) return avx2;
#endif
    return isa == Isa::base;
}

// The widest vectors that the build and the processor have, unless SPARSEWORKS_ISA asks for others.
Isa choose() {
    const char* asked = std::getenv("SPARSEWORKS_ISA");
    for (const Named& known : kIsas) {
        if (asked && std::strcmp(asked, known.name) == 0 && available(known.isa)) return known.isa;
    }
    for (Isa widest : {Isa::avx512, Isa::avx2}) {
        if (available(widest)) return widest;
    }
    return Isa::base;
}

// Floats in a vector of the kernels over simd.h.
int lanes() { return isa == Isa::base ? 4 : isa == Isa::avx2 ? 8 : 16; }

nb::dict features() {
    nb::dict facts;
    nb::list built;
    for (const Named& known : kIsas) {
        if (available(known.isa)) built.append(known.name);
        if (known.isa == isa) facts["isa"] = known.name;
    }
    facts["built"] = built;
#ifdef _OPENMP
    facts["openmp"] = true;
#else
    facts["openmp"] = false;
#endif
    facts["lanes"] = lanes();
    facts["version"] = 2;
    return facts;
}

// For tests: the kernels of another instruction set than the processor's best.
void use(const char* name) {
    for (const Named& known : kIsas) {
        if (std::strcmp(name, known.name) == 0 && available(known.isa)) {
            isa = known.isa;
            return;
        }
    }
    throw nb::value_error("not an instruction set of this build and processor; features()['built'] lists them");
}

}  // namespace

Isa isa = choose();

}  // namespace sparseworks

NB_MODULE(_native, m) {
    m.def("features", &sparseworks::features);
    m.def("use", &sparseworks::use);
    m.def("lanes", &sparseworks::lanes);
    sparseworks::bind_linear(m);
    sparseworks::bind_conv(m);
    sparseworks::bind_training(m);
    sparseworks::bind_search(m);
    sparseworks::bind_codes(m);
    sparseworks::bind_attention(m);
    sparseworks::bind_between(m);
    sparseworks::bind_prepared(m);
}
