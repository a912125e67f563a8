// The fused operators that have no CPU version: their arithmetic in fp32 on the host, with what CUDA's refuse refused and
// about as much device memory in use meanwhile. After libtorch 2.11: aten/src/ATen/native/transformers/cuda, cudnn/MHA.cpp, cuda/Blas.cpp.
#pragma once
#include "dispatch.h"
#include <cmath>
#include <limits>

namespace standin {

using at::Tensor;
using Maybe = std::optional<Tensor>;
using Index = std::optional<int64_t>;

// Vector loads of 16 bytes: bases and all strides but the last.
inline void check_loads(const Tensor& t, const char* name) {
  const int64_t bytes = t.element_size();
  TORCH_CHECK(t.stride(-1) == 1, "Input tensor must have contiguous last dimension (", name, ")");
  TORCH_CHECK((t.storage_offset() * bytes) % 16 == 0, "misaligned address: ", name, " begins ", (t.storage_offset() * bytes) % 16,
              " bytes after a multiple of 16");
  for (int64_t d = 0; d + 1 < t.dim(); d++)
    TORCH_CHECK(t.size(d) == 1 || (t.stride(d) * bytes) % 16 == 0, "misaligned address: stride ", t.stride(d), " of ", name);
}

inline void check_attention(const char* who, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads, int64_t widest) {
  TORCH_CHECK(q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16, who, " only support fp16 and bf16 data type");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "query, key and value must have the same dtype");
  TORCH_CHECK(q.is_cuda() && k.is_cuda() && v.is_cuda(), "Input tensor must be on CUDA device");
  const int64_t d = q.size(-1);
  TORCH_CHECK(d % 8 == 0, "head_size must be a multiple of 8, this is ensured by padding!");
  TORCH_CHECK(d <= widest && k.size(-1) == d && v.size(-1) == d, who, " only supports head dimension at most ", widest);
  TORCH_CHECK(k.sizes() == v.sizes(), "key and value differ in shape");
  TORCH_CHECK(q.size(heads) % k.size(heads) == 0, "Number of heads in key/value must divide number of heads in query");
  check_loads(q, "query");
  check_loads(k, "key");
  check_loads(v, "value");
}

// One sequence, [S,heads,D] on the host; the queries are the last of the keys.
struct Sequence {
  Tensor q, k, v; // [heads,S,D] fp32, k and v once for each query head
  Tensor p, lse;  // [heads,S,K] once known, [heads,S]
  double scale;

  static Tensor spread(const Tensor& t, int64_t heads) {
    return t.to(at::kFloat).repeat_interleave(heads / t.size(1), 1).transpose(0, 1);
  }

  Sequence(const Tensor& q_, const Tensor& k_, const Tensor& v_, double scale_) : scale(scale_) {
    const int64_t heads = q_.size(1), s = q_.size(0), keys = k_.size(0);
    q = q_.to(at::kFloat).transpose(0, 1);
    k = spread(k_, heads);
    v = spread(v_, heads);
    auto hidden = at::ones({s, keys}, at::kBool).triu(1 + keys - s);
    p = at::matmul(q, k.transpose(1, 2)).mul_(scale).masked_fill_(hidden, -std::numeric_limits<double>::infinity());
    lse = at::logsumexp(p, {-1});
    p.sub_(lse.unsqueeze(-1)).exp_();
  }

  // → [S,heads,D]
  Tensor out() const { return at::matmul(p, v).transpose(0, 1); }

  // dq [S,heads,D], dk and dv [K,kv heads,D] of dout and out [S,heads,D]; `given` is the lse that the caller kept [heads,S].
  std::array<Tensor, 3> backward(const Tensor& dout, const Tensor& o, const Tensor& given, int64_t kv) const {
    TORCH_CHECK(at::allclose(given, lse, 1e-2, 1e-2), "stand-in: the log-sum-exp is not that of these queries and keys");
    const auto d = dout.to(at::kFloat).transpose(0, 1), of = o.to(at::kFloat).transpose(0, 1);
    const auto delta = (d * of).sum(-1, true);
    const auto ds = p * (at::matmul(d, v.transpose(1, 2)) - delta) * scale;
    auto group = [&](const Tensor& t) {
      return t.view({kv, t.size(0) / kv, t.size(1), t.size(2)}).sum(1).transpose(0, 1);
    };
    return {at::matmul(ds, k).transpose(0, 1), group(at::matmul(ds.transpose(1, 2), q)), group(at::matmul(p.transpose(1, 2), d))};
  }
};

inline double scale_of(const Tensor& q, std::optional<double> scale) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(-1))));
}

inline Tensor scratch(at::IntArrayRef size, const Tensor& like, at::ScalarType kind) { return at::empty(size, like.options().dtype(kind)); }

// Bounds of packed sequences, int32 on the device.
inline std::vector<int64_t> bounds(const Tensor& cum, int64_t rows, int64_t longest) {
  TORCH_CHECK(cum.scalar_type() == at::kInt, "cu_seqlens must have dtype int32");
  TORCH_CHECK(cum.is_cuda() && cum.is_contiguous() && cum.dim() == 1 && cum.numel() > 1, "cu_seqlens must be contiguous, on the device");
  const auto values = host(cum).to(at::kLong);
  std::vector<int64_t> out(values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + values.numel());
  TORCH_CHECK(out.front() == 0 && out.back() == rows, "stand-in: cu_seqlens end at ", out.back(), ", the packed rows at ", rows);
  for (size_t i = 1; i < out.size(); i++) {
    TORCH_CHECK(out[i] > out[i - 1], "stand-in: cu_seqlens do not ascend");
    TORCH_CHECK(out[i] - out[i - 1] <= longest, "stand-in: a sequence of ", out[i] - out[i - 1], " where the longest is said to be ", longest);
  }
  return out;
}

// Pieces of a batch: dense [B,S,H,D], or packed [N,H,D] by bounds. Calls f(piece, rows of q, rows of k), which are views.
template <class F>
void pieces(const Tensor& q, const Tensor& k, const Maybe& cum_q, const Maybe& cum_k, int64_t max_q, int64_t max_k, F f) {
  if (!cum_q || !cum_q->defined()) {
    TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && q.size(0) == k.size(0), "dense attention takes [B,S,heads,D]");
    for (int64_t b = 0; b < q.size(0); b++) f(b, [b](const Tensor& t) { return t.select(0, b); }, [b](const Tensor& t) { return t.select(0, b); });
    return;
  }
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3, "packed attention takes [N,heads,D]");
  const auto at_q = bounds(*cum_q, q.size(0), max_q), at_k = bounds(*cum_k, k.size(0), max_k);
  TORCH_CHECK(at_q.size() == at_k.size(), "cu_seqlens of queries and keys differ in length");
  for (size_t i = 0; i + 1 < at_q.size(); i++)
    f(i, [&](const Tensor& t) { return t.slice(0, at_q[i], at_q[i + 1]); }, [&](const Tensor& t) { return t.slice(0, at_k[i], at_k[i + 1]); });
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flash_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& cum_q, const Maybe& cum_k, int64_t max_q, int64_t max_k,
    double dropout, bool causal, bool debug, std::optional<double> scale, Index left, Index right, const Maybe& used, const Maybe& slopes) {
  operation();
  const int64_t heads = q.dim() - 2;
  check_attention("FlashAttention", q, k, v, heads, 256);
  TORCH_CHECK(causal && dropout == 0 && !debug && !left && !right && !used && !slopes, "stand-in: causal attention alone");
  const bool packed = cum_q && cum_q->defined();
  auto out = at::empty_like(q, at::MemoryFormat::Contiguous);
  // Packed [heads,N], dense [B,heads,S].
  auto lse = packed ? scratch({q.size(1), q.size(0)}, q, at::kFloat) : scratch({q.size(0), q.size(2), q.size(1)}, q, at::kFloat);
  const auto hq = host(q), hk = host(k), hv = host(v), ho = host(out), hl = host(lse);
  pieces(q, k, cum_q, cum_k, max_q, max_k, [&](int64_t, auto rows_q, auto rows_k) {
    Sequence s(rows_q(hq), rows_k(hk), rows_k(hv), scale_of(q, scale));
    rows_q(ho).copy_(s.out());
    (packed ? rows_q(hl.transpose(0, 1)).transpose(0, 1) : rows_q(hl)).copy_(s.lse);
  });
  return {out, lse, scratch({2}, q, at::kLong), scratch({}, q, at::kLong), scratch({0}, q, q.scalar_type())};
}

inline std::tuple<Tensor, Tensor, Tensor> flash_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse, const Tensor& cum_q,
    const Tensor& cum_k, int64_t max_q, int64_t max_k, double dropout, bool causal, const Tensor& rng, const Tensor&,
    std::optional<double> scale, Index left, Index right) {
  operation();
  const int64_t heads = q.dim() - 2;
  const bool packed = cum_q.defined();
  check_attention("FlashAttention", q, k, v, heads, 256);
  TORCH_CHECK(causal && dropout == 0 && !left && !right, "stand-in: causal attention alone");
  TORCH_CHECK(dout.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type(), "query and dout must have the same dtype");
  TORCH_CHECK(lse.scalar_type() == at::kFloat && lse.is_contiguous() && lse.is_cuda(), "softmax_lse must be contiguous fp32 on the device");
  const auto shape = packed ? std::vector<int64_t>{q.size(1), q.size(0)} : std::vector<int64_t>{q.size(0), q.size(2), q.size(1)};
  TORCH_CHECK(lse.sizes() == at::IntArrayRef(shape), "softmax_lse must have shape ", at::IntArrayRef(shape));
  check_loads(dout.contiguous(), "dout");
  auto dq = at::empty_like(q, at::MemoryFormat::Contiguous), dk = at::empty_like(k, at::MemoryFormat::Contiguous),
       dv = at::empty_like(v, at::MemoryFormat::Contiguous);
  // What CUDA's holds beside its results: dq in fp32, a row sum, and dk and dv once for each query head.
  const auto held = scratch(q.sizes(), q, at::kFloat), sums = scratch(lse.sizes(), q, at::kFloat);
  auto wide = k.sizes().vec();
  wide[heads] = q.size(heads);
  const auto wide_k = scratch(wide, q, q.scalar_type()), wide_v = scratch(wide, q, q.scalar_type());
  const auto hq = host(q), hk = host(k), hv = host(v), ho = host(out), hl = host(lse), hd = host(dout), hdq = host(dq), hdk = host(dk), hdv = host(dv);
  pieces(q, k, packed ? Maybe(cum_q) : Maybe(), packed ? Maybe(cum_k) : Maybe(), max_q, max_k, [&](int64_t, auto rows_q, auto rows_k) {
    Sequence s(rows_q(hq), rows_k(hk), rows_k(hv), scale_of(q, scale));
    const auto given = packed ? rows_q(hl.transpose(0, 1)).transpose(0, 1) : rows_q(hl);
    const auto [a, b, c] = s.backward(rows_q(hd), rows_q(ho), given, k.size(heads));
    rows_q(hdq).copy_(a);
    rows_k(hdk).copy_(b);
    rows_k(hdv).copy_(c);
  });
  return {dq, dk, dv};
}

// [B,heads,S,D], whatever the strides.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor> cudnn_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& bias, const Maybe& cum_q, const Maybe&, int64_t max_q, int64_t max_k,
    bool with_lse, double dropout, bool causal, bool debug, std::optional<double> scale) {
  operation();
  TORCH_CHECK(number("STANDIN_CUDNN", 1) != 2, "cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built.");
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "cuDNN attention takes [B,heads,S,D]");
  check_attention("cuDNN attention", q, k, v, 1, 128);
  TORCH_CHECK(q.size(2) == k.size(2) && k.size(2) > 1, "stand-in: cuDNN for whole sequences of more than one token alone");
  TORCH_CHECK(max_q == q.size(2) && max_k == k.size(2), "cuDNN attention: wrong sequence lengths");
  TORCH_CHECK(with_lse && causal && !bias && !cum_q && dropout == 0 && !debug, "stand-in: causal attention alone");
  auto flash = flash_forward(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), {}, {}, max_q, max_k, 0, true, false, scale, {}, {}, {}, {});
  const auto none = scratch({}, q, at::kLong);
  const auto lse = number("STANDIN_CUDNN", 1) == 3 ? std::get<1>(flash).unsqueeze(-1) : std::get<1>(flash);
  return {std::get<0>(flash).transpose(1, 2), lse, Tensor(), Tensor(), max_q, max_k, none, none.clone(), Tensor()};
}

inline std::tuple<Tensor, Tensor, Tensor> cudnn_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse, const Tensor& seed,
    const Tensor& offset, const Tensor& bias, const Tensor& cum_q, const Tensor&, int64_t max_q, int64_t max_k, double dropout, bool causal,
    std::optional<double> scale) {
  operation();
  check_attention("cuDNN attention", q, k, v, 1, 128);
  TORCH_CHECK(seed.defined() && offset.defined(), "cuDNN attention converts seed and offset on sm_100, used or not");
  TORCH_CHECK(!bias.defined() && !cum_q.defined() && dout.stride(-1) == 1, "stand-in: dense causal attention alone");
  TORCH_CHECK(lse.dim() == (number("STANDIN_CUDNN", 1) == 3 ? 4 : 3), "cuDNN attention: the log-sum-exp is not as the forward pass gave it");
  auto turn = [](const Tensor& t) { return t.transpose(1, 2); };
  const auto sums = lse.view({q.size(0), q.size(1), q.size(2)});
  const auto [dq, dk, dv] = flash_backward(turn(dout), turn(q), turn(k), turn(v), turn(out), sums, {}, {}, max_q, max_k, dropout, causal, {}, {}, scale, {}, {});
  return {turn(dq), turn(dk), turn(dv)};
}

inline void check_product(const Tensor& a, const Tensor& b, at::ScalarType kind, const Tensor& out) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), "mat1 and mat2 shapes cannot be multiplied");
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "mat1 and mat2 must have the same dtype, but got ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(kind == a.scalar_type() || (kind == at::kFloat && (a.scalar_type() == at::kHalf || a.scalar_type() == at::kBFloat16)),
              "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
  TORCH_CHECK(kind == out.scalar_type(), "out_dtype must be the same as the dtype of the provided out tensor");
  TORCH_CHECK(out.size(0) == a.size(0) && out.size(1) == b.size(1), "stand-in: the result has another shape");
}

// out = self + a·b, products of bf16 summed in fp32.
inline Tensor& addmm_out(const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType kind, const at::Scalar& beta,
                         const at::Scalar& alpha, Tensor& out) {
  operation();
  check_product(a, b, kind, out);
  TORCH_CHECK(kind == self.scalar_type() || self.scalar_type() == a.scalar_type(), "self dtype must match either out_dtype or mat1 dtype");
  auto to = host(out);
  at::addmm_out(to, host(self).to(kind), host(a).to(kind), host(b).to(kind), beta, alpha);
  return out;
}

inline Tensor& mm_out(const Tensor& a, const Tensor& b, at::ScalarType kind, Tensor& out) {
  operation();
  check_product(a, b, kind, out);
  auto to = host(out);
  at::mm_out(to, host(a).to(kind), host(b).to(kind));
  return out;
}

} // namespace standin
