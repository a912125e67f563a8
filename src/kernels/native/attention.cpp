// libtorch's fused attention of CUDA devices, forward: the two operators that tch does not have.
#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <cstring>
#include <optional>

namespace {

// Runs `f`; nullptr, or the words of its exception, to be given to free().
template <class F>
char* caught(F f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error& e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

std::optional<at::Tensor> maybe(const at::Tensor* t) {
  return t ? std::optional<at::Tensor>(*t) : std::nullopt;
}

} // namespace

extern "C" {

// Causal attention; `all` is q, k, v and, for packed sequences, where each begins among queries and keys (else null).
char* herd_flash_attention(const at::Tensor* const* all, int64_t max_q, int64_t max_k, double scale, at::Tensor** out,
                           at::Tensor** lse) {
  return caught([&] {
    auto found = at::_flash_attention_forward(*all[0], *all[1], *all[2], maybe(all[3]), maybe(all[4]), max_q, max_k,
                                              /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, scale);
    *out = new at::Tensor(std::get<0>(found));
    *lse = new at::Tensor(std::get<1>(found));
  });
}

// Causal attention of q, k, v [B,S,heads,D] → out [B,heads,S,D].
char* herd_cudnn_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, double scale, at::Tensor** out,
                           at::Tensor** lse) {
  return caught([&] {
    auto found = at::_cudnn_attention_forward(q->transpose(1, 2), k->transpose(1, 2), v->transpose(1, 2), {}, {}, {}, q->size(1),
                                              k->size(1), /*compute_log_sumexp=*/true, /*dropout_p=*/0.0, /*is_causal=*/true,
                                              /*return_debug_mask=*/false, scale);
    *out = new at::Tensor(std::get<0>(found));
    *lse = new at::Tensor(std::get<1>(found));
  });
}

// cuDNN with attention (9.0 and newer).
bool herd_has_cudnn_attention() {
  try {
    const auto& hooks = at::detail::getCUDAHooks();
    return hooks.hasCuDNN() && hooks.versionRuntimeCuDNN() >= 90000;
  } catch (...) {
    return false;
  }
}
}
