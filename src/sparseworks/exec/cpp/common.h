// Shared by all kernels: compile-time loops and per-thread scratch memory.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <utility>

#define SW_INLINE inline __attribute__((always_inline))

// An unnamed namespace: nothing compiled for one instruction set may be merged with another's copy by the linker.
namespace {

// each<N>([&](auto i) {...}) unrolled at compile time, so that register tiles stay in registers.
template <class F, int... I>
SW_INLINE void each_of(std::integer_sequence<int, I...>, const F& f) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
SW_INLINE void each(const F& f) {
    each_of(std::make_integer_sequence<int, N>{}, f);
}

// Grown, never shrunk, freed with the thread.
class Scratch {
  public:
    ~Scratch() { std::free(data_); }
    float* floats(int64_t n) {
        if (n > size_) {
            std::free(data_);
            size_ = (n + 1023) / 1024 * 1024;
            data_ = static_cast<float*>(std::aligned_alloc(64, size_ * sizeof(float)));
            if (!data_) std::abort();
        }
        return data_;
    }

  private:
    float* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace
