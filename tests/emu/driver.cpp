// A stand-in for the NVIDIA driver (libcuda.so.1): loads "modules", and launches herd's own kernels under emulation. Device addresses
// are those of tests/standin, which says what lies behind them.
//
// EMU_SEED         the order of threads and blocks
// EMU_CAPABILITY   compute capability, 90 if unset
#include "emu.h"
#include "common.cuh"
#include "norm.cu"
#include "elementwise.cu"
#include "loss.cu"
#include "flat.cu"
#include <dlfcn.h>
#include <map>
#include <tuple>
#include <type_traits>

namespace {

using Run = void (*)(void**);

// What a device address stands for on the host.
void* alias(void* p) {
  using Alias = void* (*)(void*);
  static const Alias known = reinterpret_cast<Alias>(dlsym(RTLD_DEFAULT, "standin_alias"));
  if (!known) std::abort();
  return p ? known(p) : nullptr;
}

template <class T> T argument(void* at) {
  T x;
  std::memcpy(&x, at, sizeof x);
  if constexpr (std::is_pointer_v<T>) x = static_cast<T>(alias(const_cast<std::remove_const_t<std::remove_pointer_t<T>>*>(x)));
  return x;
}

template <auto kernel> struct Call;
template <class... A, void (*kernel)(A...)> struct Call<kernel> {
  static void run(void** all) { each(all, std::index_sequence_for<A...>()); }
  template <size_t... I> static void each(void** all, std::index_sequence<I...>) { kernel(argument<A>(all[I])...); }
};

#define K(name) {#name, &Call<&name>::run}
#define BOTH(name) K(name##_bf16), K(name##_f32)
const std::map<std::string, Run>& kernels() {
  static const std::map<std::string, Run> all = {
      BOTH(rms_norm),
      K(rms_norm_backward_bf16_1), K(rms_norm_backward_bf16_2), K(rms_norm_backward_bf16_4), K(rms_norm_backward_bf16_8),
      K(rms_norm_backward_f32_1), K(rms_norm_backward_f32_2), K(rms_norm_backward_f32_4), K(rms_norm_backward_f32_8),
      K(rms_norm_backward_f32_16),
      K(column_sums), BOTH(swiglu), BOTH(swiglu_backward), BOTH(rope), BOTH(loss), BOTH(loss_gradient), K(loss_sums), BOTH(adamw),
      K(squares), K(total), BOTH(embedding_backward)};
  return all;
}

long launched = 0;
thread_local std::string words;

} // namespace

extern "C" {
using Result = int;

Result cuInit(unsigned) { return 0; }
Result cuDeviceGet(int* device, int) { return *device = 0; }
// NVRTC looks a driver over for debugging and profiling hooks: there are none.
Result cuGetExportTable(const void**, const void*) { return 500; } // CUDA_ERROR_NOT_FOUND
Result cuDeviceGetAttribute(int* value, int attribute, int) {
  const char* text = std::getenv("EMU_CAPABILITY");
  const int capability = text ? std::atoi(text) : 90;
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
  return 0;
}
// A cubin is an ELF file; PTX is text. What is in it is not looked at.
Result cuModuleLoadData(void** module, const void* image) {
  const char* bytes = static_cast<const char*>(image);
  if (std::memcmp(bytes, "\177ELF", 4) != 0 && std::strncmp(bytes, "//", 2) != 0) return 200; // CUDA_ERROR_INVALID_IMAGE
  *module = const_cast<char*>("module");
  return 0;
}
Result cuModuleGetFunction(void** function, void*, const char* name) {
  const auto found = kernels().find(name);
  if (found == kernels().end()) return 500; // CUDA_ERROR_NOT_FOUND
  *function = reinterpret_cast<void*>(found->second);
  return 0;
}
Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void*,
                      void** arguments, void**) {
  // Limits of a launch, CUDA programming guide, "Compute Capabilities".
  if (gx == 0 || gx > 0x7fffffffu || gy == 0 || gy > 65535 || gz != 1 || bx == 0 || bx > 1024 || bx % 32 || by != 1 || bz != 1 || shared)
    return 1; // CUDA_ERROR_INVALID_VALUE
  static const char* seed = std::getenv("EMU_SEED");
  ++launched;
  struct Both { Run run; void** arguments; } both{reinterpret_cast<Run>(function), arguments};
  try {
    emu::host.races = 0;
    emu::host.failure.clear();
    emu::launch({gx, gy, gz}, {bx, by, bz}, seed ? unsigned(std::atoi(seed)) : 1,
                [](void* b) { static_cast<Both*>(b)->run(static_cast<Both*>(b)->arguments); }, &both);
    if (emu::host.races) throw std::runtime_error(std::to_string(emu::host.races) + " races in shared memory");
  } catch (const std::exception& e) {
    words = e.what();
    return 719; // CUDA_ERROR_LAUNCH_FAILED
  }
  return 0;
}
Result cuGetErrorString(Result code, const char** text) {
  static thread_local std::string all;
  all = code == 719 ? "unspecified launch failure (" + words + ")" : "emulated driver";
  *text = all.c_str();
  return 0;
}
long emu_launched() { return launched; }
}
