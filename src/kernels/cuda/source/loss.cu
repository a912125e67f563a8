// Cross-entropy over rows of logits [N,V] of T, one block a row. V is a multiple of 16 bytes of T. Targets are i64 and count over the
// whole vocabulary, of which the columns here are those from `first` on; a negative target does not count.

// Log of the sum of exponentials of a row, in one pass: each thread keeps a highest value and a sum relative to it.
template <class T, class Part> __device__ inline float row_lse(const T* x, int width, Part& part) {
  constexpr int V = Vec<T>::N;
  const float none = -__int_as_float(0x7f800000); // −∞
  float top = none, sum = 0.f;
  for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
    const Vec<T> a = load(x + i);
    float here = top;
#pragma unroll
    for (int j = 0; j < V; ++j) here = fmaxf(here, up(a.v[j]));
    if (here == none) continue;
    sum *= expf(top - here);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += expf(up(a.v[j]) - here);
    top = here;
  }
  const float all = over_block<Max>(top, part);
  const float whole = over_block<Sum>(top == none ? 0.f : sum * expf(top - all), part);
  return all == none ? none : all + logf(whole);
}

// The row becomes scale·((softmax·(1 + 2·z·lse)) − [column = target]), or zeros where the target does not count.
template <class T>
__device__ inline void row_gradient(T* x, int width, i64 target, i64 first, float lse, float scale, float z) {
  constexpr int V = Vec<T>::N;
  const i64 column = target < 0 ? -1 : target - first;
  const float factor = 1.f + 2.f * z * lse;
  for (int i = threadIdx.x * V; i < width; i += blockDim.x * V) {
    Vec<T> a = load((const T*)x + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float g = expf(up(a.v[j]) - lse) * factor - (i + j == column ? 1.f : 0.f);
      a.v[j] = down<T>(target < 0 ? 0.f : g * scale);
    }
    store(x + i, a);
  }
}

// parts [2,N]: the log of the sum, and the target's logit (0 where it lies elsewhere or does not count). With `gradient` the row
// becomes its gradient at once, while it is in the cache: for ranks that have all columns.
template <class T>
__device__ inline void loss_row(T* logits, const i64* targets, float* parts, i64 rows, int width, i64 first, int gradient,
                                float scale, float z) {
  SHARED(float, part, 32);
  const i64 row = blockIdx.x, target = targets[row];
  T* x = logits + row * width;
  const float lse = row_lse<T>(x, width, part);
  if (threadIdx.x == 0) {
    const i64 column = target - first;
    parts[row] = lse;
    parts[rows + row] = target >= 0 && column >= 0 && column < width ? up(x[column]) : 0.f;
  }
  __syncthreads(); // the target's logit is read before it is overwritten
  if (gradient) row_gradient<T>(x, width, target, first, lse, scale, z);
}

// Of parts [2,N] over the whole vocabulary: sums [3] f64 = loss, (log Z)² and number of the rows that count, in one order. One block.
extern "C" __global__ void __launch_bounds__(512)
    loss_sums(const float* parts, const i64* targets, double* sums, i64 rows) {
  SHARED(double, part, 32);
  double loss = 0, z = 0, tokens = 0;
  for (i64 row = threadIdx.x; row < rows; row += blockDim.x) {
    if (targets[row] < 0) continue;
    const float lse = parts[row];
    loss += (double)(lse - parts[rows + row]);
    z += (double)(lse * lse);
    tokens += 1;
  }
  loss = over_block<Sum>(loss, part);
  z = over_block<Sum>(z, part);
  tokens = over_block<Sum>(tokens, part);
  if (threadIdx.x == 0) {
    sums[0] = loss;
    sums[1] = z;
    sums[2] = tokens;
  }
}

#define LOSS(T, name)                                                                                                              \
  extern "C" __global__ void __launch_bounds__(512)                                                                                \
      loss_##name(T* logits, const i64* targets, float* parts, i64 rows, int width, i64 first, int gradient, float scale,          \
                  float z) {                                                                                                       \
    loss_row<T>(logits, targets, parts, rows, width, first, gradient, scale, z);                                                   \
  }                                                                                                                                \
  extern "C" __global__ void __launch_bounds__(512)                                                                                \
      loss_gradient_##name(T* logits, const i64* targets, const float* lse, int width, i64 first, float scale, float z) {          \
    const i64 row = blockIdx.x;                                                                                                    \
    row_gradient<T>(logits + row * width, width, targets[row], first, lse[row], scale, z);                                         \
  }
LOSS(bf16, bf16)
LOSS(float, f32)
