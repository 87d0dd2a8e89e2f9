// Which instruction set runs: asked of the processor once. Every kernel over simd.h is compiled for `base` (SSE2, NEON) and, where
// the compiler can, for AVX2 and AVX-512. `wide` is for tests: the sixteen lanes of AVX-512 in the instructions of AVX2.
#pragma once

namespace sparseworks {

enum class Isa { base, avx2, avx512, wide };
extern Isa isa;

// SW_KERNEL(name, Arguments) declares the kernel of every instruction set, SW_RUN(name, arguments) runs the right one.
#define SW_KERNEL(name, Arguments)                      \
    namespace base { void name(const Arguments&); }     \
    namespace avx2 { void name(const Arguments&); }     \
    namespace avx512 { void name(const Arguments&); }   \
    namespace wide { void name(const Arguments&); }

#define SW_IF_ISA(set, name, ...) ::sparseworks::isa == ::sparseworks::Isa::set ? set::name(__VA_ARGS__) :
#if defined(SPARSEWORKS_WIDE)
#define SW_IF_WIDE(...) SW_IF_ISA(wide, __VA_ARGS__)
#else
#define SW_IF_WIDE(...)
#endif
#if defined(SPARSEWORKS_AVX512)
#define SW_IF_AVX512(...) SW_IF_ISA(avx512, __VA_ARGS__)
#else
#define SW_IF_AVX512(...)
#endif
#if defined(SPARSEWORKS_AVX2)
#define SW_IF_AVX2(...) SW_IF_ISA(avx2, __VA_ARGS__)
#else
#define SW_IF_AVX2(...)
#endif

#define SW_RUN(name, ...)                                                                 \
    (SW_IF_AVX2(name, __VA_ARGS__) SW_IF_AVX512(name, __VA_ARGS__) SW_IF_WIDE(name, __VA_ARGS__) \
         base::name(__VA_ARGS__))

}  // namespace sparseworks
