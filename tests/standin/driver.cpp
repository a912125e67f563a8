// Preloaded into a process: the NVIDIA driver's control node is there. What herd does next is what it does on a GPU node: it
// opens libtorch_cuda.so.
#include <cstring>
#include <dlfcn.h>
#include <unistd.h>

extern "C" int access(const char* path, int mode) {
  if (path && std::strcmp(path, "/dev/nvidiactl") == 0) return 0;
  using Access = int (*)(const char*, int);
  static const Access real = reinterpret_cast<Access>(dlsym(RTLD_NEXT, "access"));
  return real(path, mode);
}
