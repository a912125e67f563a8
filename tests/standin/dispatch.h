// Any operator on device tensors: run by libtorch's CPU version on the aliases of its arguments, results put into new device
// tensors. What CUDA would refuse is refused: arguments on two devices.
#pragma once
#include "faults.h"
#include "memory.h"
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <torch/library.h>

namespace standin {

inline void check_devices(const c10::FunctionSchema& schema, const std::vector<c10::IValue>& arguments) {
  bool device = false, cpu = false;
  auto see = [&](const at::Tensor& t) {
    if (!t.defined()) return;
    device |= t.is_cuda();
    cpu |= t.is_cpu() && t.dim() > 0; // a scalar may lie anywhere
  };
  for (const auto& a : arguments) {
    if (a.isTensor()) see(a.toTensor());
    if (a.isTensorList())
      for (const at::Tensor& t : a.toTensorVector()) see(t);
  }
  TORCH_CHECK(!(device && cpu), "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
              schema.name(), ")");
}

inline c10::IValue on_host(const c10::IValue& a) {
  if (a.isTensor()) return host(a.toTensor());
  if (a.isTensorList()) {
    c10::List<at::Tensor> out;
    for (const at::Tensor& t : a.toTensorVector()) out.push_back(host(t));
    return out;
  }
  if (a.isList() && a.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
    c10::List<std::optional<at::Tensor>> out;
    for (const c10::IValue& t : a.toListRef())
      out.push_back(t.isNone() ? std::nullopt : std::optional<at::Tensor>(host(t.toTensor())));
    return out;
  }
  if (a.isDevice()) return c10::Device(c10::kCPU);
  return a;
}

// `out` gets the storage of `from`: what an operator does to an out= argument that it sizes itself.
inline void adopt(const at::Tensor& out, const at::Tensor& from) {
  auto* impl = out.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(from.storage());
  impl->set_sizes_and_strides(from.sizes(), from.strides());
}

inline void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  operation();
  const auto& schema = op.schema();
  const auto& wanted = schema.arguments();
  const auto last = torch::jit::last(stack, wanted.size());
  const std::vector<c10::IValue> in(last.begin(), last.end());
  torch::jit::drop(stack, wanted.size());
  check_devices(schema, in);
  auto writes = [](const c10::Argument& a) { return a.alias_info() && a.alias_info()->isWrite(); };
  std::vector<std::pair<at::Tensor, at::Tensor>> sized;
  for (size_t i = 0; i < in.size(); i++) {
    if (in[i].isTensor() && writes(wanted[i]) && in[i].toTensor().is_cuda() && in[i].toTensor().numel() == 0) {
      sized.emplace_back(in[i].toTensor(), at::empty({0}, in[i].toTensor().options().device(at::kCPU)));
      torch::jit::push(stack, sized.back().second);
    } else {
      torch::jit::push(stack, on_host(in[i]));
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (auto& [out, found] : sized) adopt(out, to_device(found));
  const auto& returns = schema.returns();
  const auto found = torch::jit::last(stack, returns.size());
  const std::vector<c10::IValue> out(found.begin(), found.end());
  torch::jit::drop(stack, returns.size());
  for (size_t r = 0; r < out.size(); r++) {
    if (writes(returns[r])) { // one of the arguments
      for (size_t i = 0; i < in.size(); i++)
        if (writes(wanted[i]) && wanted[i].alias_info()->beforeSets() == returns[r].alias_info()->beforeSets()) {
          torch::jit::push(stack, in[i]);
          break;
        }
    } else if (out[r].isTensor() && out[r].toTensor().defined()) {
      torch::jit::push(stack, to_device(out[r].toTensor()));
    } else {
      torch::jit::push(stack, out[r]);
    }
  }
}

using Kind = std::optional<at::ScalarType>;
const c10::DispatchKeySet kDevice(c10::DispatchKey::CUDA);

inline at::Tensor empty(at::IntArrayRef size, Kind kind, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                        std::optional<at::MemoryFormat> format) {
  operation();
  return at::detail::empty_generic(size, &allocator(), kDevice, c10::dtype_or_default(kind), format);
}

inline at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Kind kind, std::optional<at::Layout>,
                                std::optional<at::Device>, std::optional<bool>) {
  operation();
  return at::detail::empty_strided_generic(size, stride, &allocator(), kDevice, c10::dtype_or_default(kind));
}

// Between any two devices.
inline at::Tensor& copy_(at::Tensor& self, const at::Tensor& from, bool) {
  operation();
  host(self).copy_(host(from));
  return self;
}

inline at::Tensor strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  auto* impl = out.unsafeGetTensorImpl();
  impl->set_storage_offset(offset.value_or(self.storage_offset()));
  impl->set_sizes_and_strides(size, stride);
  return out;
}

inline at::Tensor view(const at::Tensor& self, at::IntArrayRef size) {
  const auto whole = at::infer_size_dv(size, self.numel());
  const auto stride = at::detail::computeStride(self.sizes(), self.strides(), whole);
  TORCH_CHECK(stride, "view size is not compatible with input tensor's size and stride");
  return strided(self, whole, *stride, self.storage_offset());
}

// Not by the fallback: both outputs of sort.values_stable are arguments that it sizes itself.
inline std::tuple<at::Tensor, at::Tensor> sort(const at::Tensor& self, std::optional<bool> stable, int64_t dim, bool descending) {
  operation();
  const auto [values, indices] = at::sort(host(self), stable, dim, descending);
  return {to_device(values), to_device(indices)};
}

inline at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
  return strided(self, size, stride, self.storage_offset());
}

} // namespace standin
