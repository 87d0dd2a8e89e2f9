// Which instruction set runs: asked of the processor once. Every kernel over simd.h is compiled for `base` (SSE2, NEON) and, where
// the compiler can, for AVX2 and AVX-512.
#pragma once

namespace sparseworks {

enum class Isa { base, avx2, avx512 };
extern Isa isa;

// SW_KERNEL(name, Arguments) declares the kernel of every instruction set, SW_RUN(name, arguments) runs the right one.
#define SW_KERNEL(name, Arguments)                      \
    namespace base { void name(const Arguments&); }     \
    namespace avx2 { void name(const Arguments&); }     \
    namespace avx512 { void name(const Arguments&); }

#if defined(SPARSEWORKS_AVX512)
#define SW_RUN(name, ...)                                                     \
    (::sparseworks::isa == ::sparseworks::Isa::avx512 ? avx512::name(__VA_ARGS__) \
     : ::sparseworks::isa == ::sparseworks::Isa::avx2 ? avx2::name(__VA_ARGS__)   \
                                                      : base::name(__VA_ARGS__))
#elif defined(SPARSEWORKS_AVX2)
#define SW_RUN(name, ...) \
    (::sparseworks::isa == ::sparseworks::Isa::avx2 ? avx2::name(__VA_ARGS__) : base::name(__VA_ARGS__))
#else
#define SW_RUN(name, ...) base::name(__VA_ARGS__)
#endif

}  // namespace sparseworks
