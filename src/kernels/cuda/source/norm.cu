// RMSNorm (arXiv:1910.07467) of rows [N,H] of T, forward and backward. H is a multiple of 16 bytes of T.

// One block a row. y = x · rstd · w, rstd = 1/sqrt(mean(x²) + eps).
template <class T>
__device__ inline void norm_row(const T* x, const T* w, T* y, float* rstd, int width, float eps) {
  SHARED(float, part, 32);
  constexpr int V = Vec<T>::N;
  const i64 row = blockIdx.x;
  x += row * width;
  y += row * width;
  float sum = 0.f;
  for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
    const Vec<T> a = load(x + i);
#pragma unroll
    for (int j = 0; j < V; ++j) sum = fmaf(up(a.v[j]), up(a.v[j]), sum);
  }
  const float r = rsqrtf(over_block<Sum>(sum, part) / width + eps);
  if (threadIdx.x == 0) rstd[row] = r;
  for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
    const Vec<T> a = load(x + i), g = load(w + i);
    Vec<T> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.v[j] = down<T>(up(a.v[j]) * r * up(g.v[j]));
    store(y + i, out);
  }
}

// Block b takes the rows b, b + gridDim, …: dx of each, and its part of dw [gridDim,H], which column_sums adds up. A thread keeps its
// columns of dw in registers: PER vectors. dx = (g − x̂·mean(g·x̂))·rstd + residual, g = dy·w, x̂ = x·rstd; dw = Σ dy·x̂.
template <class T, int PER>
__device__ inline void norm_back(const T* dy, const T* x, const T* w, const float* rstd, const T* residual, T* dx, float* parts,
                                 i64 rows, int width) {
  SHARED(float, part, 32);
  constexpr int V = Vec<T>::N;
  float dw[PER * V];
#pragma unroll
  for (int i = 0; i < PER * V; ++i) dw[i] = 0.f;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    const i64 at = row * width;
    const float r = rstd[row];
    float dot = 0.f;
#pragma unroll
    for (int k = 0; k < PER; ++k) {
      const int i = (k * blockDim.x + threadIdx.x) * V;
      if (i >= width) continue;
      const Vec<T> d = load(dy + at + i), a = load(x + at + i), g = load(w + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float hat = up(a.v[j]) * r, dh = up(d.v[j]) * hat;
        dw[k * V + j] += dh;
        dot = fmaf(dh, up(g.v[j]), dot);
      }
    }
    const float mean = over_block<Sum>(dot, part) / width;
#pragma unroll
    for (int k = 0; k < PER; ++k) {
      const int i = (k * blockDim.x + threadIdx.x) * V;
      if (i >= width) continue;
      const Vec<T> d = load(dy + at + i), a = load(x + at + i), g = load(w + i);
      Vec<T> rest, out;
      if (residual) rest = load(residual + at + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        float v = (up(d.v[j]) * up(g.v[j]) - up(a.v[j]) * r * mean) * r;
        if (residual) v += up(rest.v[j]);
        out.v[j] = down<T>(v);
      }
      store(dx + at + i, out);
    }
  }
#pragma unroll
  for (int k = 0; k < PER; ++k) {
    const int i = (k * blockDim.x + threadIdx.x) * V;
    if (i >= width) continue;
#pragma unroll
    for (int j = 0; j < V; ++j) parts[(i64)blockIdx.x * width + i + j] = dw[k * V + j];
  }
}

// sums [H] += the rows of parts [count,H], from the first to the last.
extern "C" __global__ void __launch_bounds__(256) column_sums(const float* parts, float* sums, int count, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float sum = 0.f;
  for (int p = 0; p < count; ++p) sum += parts[(i64)p * width + i];
  sums[i] += sum;
}

#define NORM(T, name)                                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                                                \
      rms_norm_##name(const T* x, const T* w, T* y, float* rstd, int width, float eps) {                                           \
    norm_row<T>(x, w, y, rstd, width, eps);                                                                                        \
  }
#define NORM_BACK(T, name, per)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                                                \
      rms_norm_backward_##name##_##per(const T* dy, const T* x, const T* w, const float* rstd, const T* residual, T* dx,           \
                                       float* parts, i64 rows, int width) {                                                        \
    norm_back<T, per>(dy, x, w, rstd, residual, dx, parts, rows, width);                                                           \
  }
NORM(bf16, bf16)
NORM(float, f32)
NORM_BACK(bf16, bf16, 1)
NORM_BACK(bf16, bf16, 2)
NORM_BACK(bf16, bf16, 4)
NORM_BACK(bf16, bf16, 8)
NORM_BACK(float, f32, 1)
NORM_BACK(float, f32, 2)
NORM_BACK(float, f32, 4)
NORM_BACK(float, f32, 8)
NORM_BACK(float, f32, 16)
