// Finding CUDA at run time: the binary does not link libtorch_cuda, whose loading costs a second on every start.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <unistd.h>

namespace {

// The driver's control node: Linux, WSL, Tegra.
bool has_driver() {
  for (const char* node : {"/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvmap"})
    if (access(node, F_OK) == 0) return true;
  return false;
}

// Of the dlopen that just failed: any other call into the loader forgets them.
std::string loader_words() {
  const char* words = dlerror();
  return words ? words : "dlopen failed without a word";
}

// libtorch_cuda.so from the directory of the libtorch_cpu that this process runs, else by the loader's rules. nullptr: the
// loader's words are added to `why`.
void* load(std::string& why) {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&at::detail::getCUDAHooks), &info) && info.dli_fname) {
    std::string path(info.dli_fname);
    const auto slash = path.rfind('/');
    if (slash != std::string::npos) {
      path.replace(slash + 1, std::string::npos, "libtorch_cuda.so");
      if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) return handle;
      why = loader_words();
      // A file that is there and does not load is what is wrong, whatever else the loader finds.
      if (access(path.c_str(), F_OK) == 0) return nullptr;
    }
  }
  void* handle = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (!handle && why.empty()) why = loader_words();
  return handle;
}

} // namespace

extern "C" {

// Devices that libtorch can use. 0 without a driver; 0 with words in *why, to be given to free(), where there is a driver and
// libtorch cannot use it. libtorch caches its CUDA hooks at their first use, so this must run before anything else asks
// libtorch for CUDA.
int64_t herd_cuda_devices(char** why) {
  if (!has_driver()) return 0;
  std::string words;
  int64_t count = 0;
  if (load(words)) {
    try {
      count = at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
      if (count == 0) words = at::hasCUDA() ? "CUDA lists no device (is CUDA_VISIBLE_DEVICES empty?)" : "this libtorch was built without CUDA";
    } catch (const c10::Error& e) {
      words = e.what_without_backtrace();
    } catch (const std::exception& e) {
      words = e.what();
    }
  }
  if (count == 0) *why = strdup(words.c_str());
  return count;
}

// Of the device's caching allocator: bytes that tensors asked for, the highest of them, bytes held from the device; of the
// device: bytes free and in all. False where the allocator does not say.
bool herd_device_memory(int64_t index, uint64_t* out) {
  try {
    auto* allocator = c10::getDeviceAllocator(c10::kCUDA);
    if (!allocator->initialized()) return false;
    const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(index));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const auto [unused, total] = allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(index));
    out[0] = stats.requested_bytes[all].current;
    out[1] = stats.requested_bytes[all].peak;
    out[2] = stats.reserved_bytes[all].current;
    out[3] = unused;
    out[4] = total;
    return true;
  } catch (...) {
    return false;
  }
}

// The cudaStream_t on which libtorch puts this thread's work for a device; nullptr, the default stream, where it does not say.
void* herd_current_stream(int64_t index) {
  try {
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
    return c10::impl::getDeviceGuardImpl(c10::kCUDA)->getStream(device).native_handle();
  } catch (...) {
    return nullptr;
  }
}

void herd_device_reset_peak(int64_t index) {
  try {
    auto* allocator = c10::getDeviceAllocator(c10::kCUDA);
    if (allocator->initialized()) allocator->resetPeakStats(static_cast<c10::DeviceIndex>(index));
  } catch (...) {
  }
}
}
