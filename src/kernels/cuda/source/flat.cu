// Passes over flat fp32 buffers: AdamW, the sum of squares; and the embedding's gradient.

struct AdamWFactors {
  float beta1, beta2, new1, new2, grad_scale, keep, rate, root, eps;
};

// Decoupled AdamW (arXiv:1711.05101): everything is read and written once. `param` of T gets the rounded result; null: none.
template <class T>
__device__ inline void adamw_four(float* master, T* param, float* m, float* v, const float* grad, i64 n, AdamWFactors k) {
  const i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (i >= n) return;
  Vec<float> w, a, b, g;
  const int here = n - i < 4 ? (int)(n - i) : 4;
  if (here == 4) {
    w = load((const float*)master + i), a = load((const float*)m + i), b = load((const float*)v + i), g = load(grad + i);
  } else {
    for (int j = 0; j < here; ++j) w.v[j] = master[i + j], a.v[j] = m[i + j], b.v[j] = v[i + j], g.v[j] = grad[i + j];
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j >= here) break;
    const float d = g.v[j] * k.grad_scale;
    a.v[j] = fmaf(a.v[j], k.beta1, d * k.new1);
    b.v[j] = fmaf(b.v[j], k.beta2, d * d * k.new2);
    w.v[j] = w.v[j] * k.keep - a.v[j] * k.rate / fmaf(sqrtf(b.v[j]), k.root, k.eps);
  }
  if (here == 4) {
    store(master + i, w), store(m + i, a), store(v + i, b);
    if (param) {
      struct alignas(4 * sizeof(T)) Four { T v[4]; } out;
#pragma unroll
      for (int j = 0; j < 4; ++j) out.v[j] = down<T>(w.v[j]);
      *(Four*)(param + i) = out;
    }
  } else {
    for (int j = 0; j < here; ++j) {
      master[i + j] = w.v[j], m[i + j] = a.v[j], v[i + j] = b.v[j];
      if (param) param[i + j] = down<T>(w.v[j]);
    }
  }
}

// parts [gridDim] f64: each block's share of Σ x², its elements in one order.
extern "C" __global__ void __launch_bounds__(256) squares(const float* x, double* parts, i64 n) {
  SHARED(double, part, 32);
  double sum = 0;
  const i64 step = (i64)gridDim.x * blockDim.x * 4;
  for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += step) {
    float four = 0.f;
    if (n - i >= 4) {
      const Vec<float> a = load(x + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) four = fmaf(a.v[j], a.v[j], four);
    } else {
      for (i64 j = i; j < n; ++j) four = fmaf(x[j], x[j], four);
    }
    sum += (double)four;
  }
  sum = over_block<Sum>(sum, part);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// out [1] f64 = the sum of parts [count], in one order. One block.
extern "C" __global__ void __launch_bounds__(256) total(const double* parts, double* out, int count) {
  SHARED(double, part, 32);
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
  sum = over_block<Sum>(sum, part);
  if (threadIdx.x == 0) *out = sum;
}

// grad [V,H] f32 += rows of dy [N,H] at ids. `sorted` are the ids in ascending order, `order` the rows they came from, rows of one id
// in their own order. Grid (N, pieces of a row): the block at the first row of an id adds all rows of that id, so that no two
// blocks write one row and the order is always the same.
template <class T>
__device__ inline void embedding_rows(const T* dy, const i64* sorted, const i64* order, float* grad, i64 rows, int width) {
  constexpr int V = Vec<T>::N;
  const i64 at = blockIdx.x, id = sorted[at];
  if (at > 0 && sorted[at - 1] == id) return;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (i >= width) return;
  float sum[V];
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = 0.f;
  for (i64 k = at; k < rows && sorted[k] == id; ++k) {
    const Vec<T> d = load(dy + order[k] * width + i);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += up(d.v[j]);
  }
#pragma unroll
  for (int j = 0; j < V; ++j) grad[id * width + i + j] += sum[j];
}

#define FLAT(T, name)                                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                                                \
      adamw_##name(float* master, T* param, float* m, float* v, const float* grad, i64 n, AdamWFactors k) {                        \
    adamw_four<T>(master, param, m, v, grad, n, k);                                                                                \
  }                                                                                                                                \
  extern "C" __global__ void __launch_bounds__(128)                                                                                \
      embedding_backward_##name(const T* dy, const i64* sorted, const i64* order, float* grad, i64 rows, int width) {              \
    embedding_rows<T>(dy, sorted, order, grad, rows, width);                                                                       \
  }
FLAT(bf16, bf16)
FLAT(float, f32)
