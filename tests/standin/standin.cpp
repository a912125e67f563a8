// A stand-in for libtorch_cuda: CPU libtorch under CUDA's dispatch key. Built by the tests as libtorch_cuda.so, found by herd as
// the real one is. docs/gpu.md says what it shows and what it cannot.
//
// STANDIN_MEMORY   bytes of the device
// STANDIN_OTHERS   bytes of it that other processes hold
// STANDIN_FAULT    N:KIND, see faults.h
// STANDIN_CUDNN    0: this libtorch has no cuDNN; 2: cuDNN finds no plan for any attention; 3: its log-sum-exp
//                  has a last dim of one
// STANDIN_REPORT   a file that gets, at the end, "operations live peak" (bytes requested by tensors)
#include "fused.h"
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <fstream>
#include <unordered_set>

namespace standin {
namespace {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return {c10::kCUDA, 0}; }
  c10::Device getDevice() const override { return {c10::kCUDA, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
  void* getStreamNativeHandle(const c10::Stream) const override { return nullptr; }
  c10::Stream exchangeStream(c10::Stream s) const override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(const c10::DeviceIndex) const override { operation(); }
};

// Page-locked memory: plain, but known again.
struct Pinned final : c10::Allocator {
  std::mutex mutex;
  std::unordered_set<const void*> all;
  static Pinned& one() {
    static Pinned* pinned = new Pinned;
    return *pinned;
  }
  c10::DataPtr allocate(size_t n) override {
    void* p = nullptr;
    TORCH_CHECK(posix_memalign(&p, 4096, std::max<size_t>(n, 1)) == 0, "stand-in: no memory");
    std::lock_guard<std::mutex> guard(mutex);
    all.insert(p);
    return {p, p, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
  static void release(void* p) {
    std::lock_guard<std::mutex> guard(one().mutex);
    one().all.erase(p);
    std::free(p);
  }
};

// libtorch asks its registry for a class of this name.
struct CUDAHooks final : at::CUDAHooksInterface {
  CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasCuDNN() const override { return number("STANDIN_CUDNN", 1) != 0; }
  long versionRuntimeCuDNN() const override { return 91900; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &Pinned::one(); }
  bool isPinnedPtr(const void* p) const override {
    std::lock_guard<std::mutex> guard(Pinned::one().mutex);
    return Pinned::one().all.count(p) != 0;
  }
};

using at::CUDAHooksArgs;
using at::CUDAHooksInterface;
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Register {
  Register() { c10::SetAllocator(c10::kCUDA, &allocator(), 200); }
  ~Register() {
    const char* file = std::getenv("STANDIN_REPORT");
    if (!file) return;
    const auto stats = allocator().getDeviceStats(0).requested_bytes[static_cast<size_t>(StatType::AGGREGATE)];
    std::ofstream(file, std::ios::app) << operations << ' ' << stats.current << ' ' << stats.peak << '\n';
  }
} registered;

} // namespace
} // namespace standin

// For the stand-in of the driver, which runs herd's own kernels (tests/emu).
extern "C" void* standin_alias(void* p) { return standin::allocator().alias(p); }

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&standin::fallback>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", standin::empty);
  m.impl("empty_strided", standin::empty_strided);
  m.impl("copy_", standin::copy_);
  m.impl("as_strided", standin::strided);
  m.impl("view", standin::view);
  m.impl("_reshape_alias", standin::reshape_alias);
  m.impl("sort.stable", standin::sort);
  m.impl("_flash_attention_forward", standin::flash_forward);
  m.impl("_flash_attention_backward", standin::flash_backward);
  m.impl("_cudnn_attention_forward", standin::cudnn_forward);
  m.impl("_cudnn_attention_backward", standin::cudnn_backward);
  m.impl("addmm.dtype_out", standin::addmm_out);
  m.impl("mm.dtype_out", standin::mm_out);
}
