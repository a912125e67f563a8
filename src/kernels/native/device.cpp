// Finding CUDA at run time: the binary does not link libtorch_cuda, whose loading costs a second on every start.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
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

// libtorch_cuda.so from the directory of the libtorch_cpu that this process runs.
void* load() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&at::detail::getCUDAHooks), &info) && info.dli_fname) {
    std::string path(info.dli_fname);
    const auto slash = path.rfind('/');
    if (slash != std::string::npos) {
      path.replace(slash + 1, std::string::npos, "libtorch_cuda.so");
      if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) return handle;
    }
  }
  return dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
}

} // namespace

extern "C" {

// Devices that libtorch can use: 0 without a driver or a libtorch built with CUDA, -1 if libtorch_cuda does not load.
// libtorch caches its CUDA hooks at their first use, so this must run before anything else asks libtorch for CUDA.
int64_t herd_cuda_device_count() {
  if (!has_driver()) return 0;
  if (!load()) return -1;
  try {
    return at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0;
  } catch (...) {
    return 0;
  }
}
}
