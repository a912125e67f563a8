// Failures on order: STANDIN_FAULT=N:KIND makes operation N, and where the driver would stay broken all after it, fail with the
// words that libtorch 2.11 gives such an error.
#pragma once
#include <atomic>
#include <c10/util/Exception.h>
#include <cstdlib>
#include <map>
#include <string>

namespace standin {

struct Failure {
  const char* words;
  bool sticky; // the context is lost: every later call fails too
};

inline const Failure* failure(const std::string& kind) {
  static const std::map<std::string, Failure> known = {
      {"assert", {"CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in https://docs.nvidia.com/cuda", true}},
      {"ecc", {"CUDA error: uncorrectable ECC error encountered\nSearch for `cudaErrorECCUncorrectable' in https://docs.nvidia.com/cuda", true}},
      {"launch", {"CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure' in https://docs.nvidia.com/cuda", true}},
      {"cublas", {"CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, opa, opb, m, n, k)`", false}},
      {"cudnn", {"cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART", false}},
      {"oom", {"CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1.10 GiB is free.", false}},
  };
  const auto found = known.find(kind);
  return found == known.end() ? nullptr : &found->second;
}

struct Order {
  long at = -1;
  const Failure* what = nullptr;
};

inline Order order() {
  const char* text = std::getenv("STANDIN_FAULT");
  if (!text) return {};
  char* rest = nullptr;
  const long at = std::strtol(text, &rest, 10);
  const Failure* what = *rest == ':' ? failure(rest + 1) : nullptr;
  TORCH_CHECK(what, "stand-in: STANDIN_FAULT=", text, " is not N:KIND");
  return {at, what};
}

inline std::atomic<long> operations{0};

// Called by each operation once.
inline void operation() {
  static const Order wanted = order();
  const long now = ++operations;
  if (!wanted.what || now < wanted.at || (now > wanted.at && !wanted.what->sticky)) return;
  TORCH_CHECK(false, wanted.what->words);
}

} // namespace standin
