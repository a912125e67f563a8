// Shared by all kernels. Compiled by NVRTC, which brings no headers, and for tests by the host's compiler after tests/emu/emu.h.
#ifndef HERD_EMULATED
#define SHARED(type, name, count) __shared__ type name[count]
#endif

typedef unsigned short bf16;
typedef long long i64;

// 16 bytes: what one memory transaction of a thread moves.
template <class T> struct alignas(16) Vec {
  static constexpr int N = 16 / sizeof(T);
  T v[N];
};

__device__ inline float up(float x) { return x; }
__device__ inline float up(bf16 x) { return __uint_as_float((unsigned)x << 16); }

// Rounds to nearest, ties to even.
template <class T> __device__ inline T down(float x);
template <> __device__ inline float down<float>(float x) { return x; }
template <> __device__ inline bf16 down<bf16>(float x) {
#ifdef __CUDA_ARCH__
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
#else
  const unsigned u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (bf16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
}

template <class T> __device__ inline Vec<T> load(const T* p) { return *(const Vec<T>*)p; }
template <class T> __device__ inline void store(T* p, const Vec<T>& x) { *(Vec<T>*)p = x; }

struct Sum {
  template <class F> __device__ static F join(F a, F b) { return a + b; }
};
struct Max {
  __device__ static float join(float a, float b) { return fmaxf(a, b); }
};

// Over the 32 lanes of a warp, in one order: every lane gets the result.
template <class Op, class F> __device__ inline F over_warp(F x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}

// Over all threads of a block (whole warps), in one order: every thread gets the result. `part` has 32 places, and may be used again
// after the call.
template <class Op, class F, class Part> __device__ inline F over_block(F x, Part& part) {
  x = over_warp<Op>(x);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
#ifndef PLANT_NO_BARRIER
  __syncthreads();
#endif
  const int warps = blockDim.x >> 5;
  F all = part[0];
  for (int w = 1; w < warps; ++w) all = Op::join(all, (F)part[w]);
  __syncthreads();
  return all;
}
