// SwiGLU and the rotary embedding.

// gate_up [N,2F] (gate first) → silu(gate)·up [N,F]. Grid (N, pieces of a row); F is a multiple of 16 bytes of T.
template <class T> __device__ inline void swiglu_row(const T* gate_up, T* y, int f) {
  constexpr int V = Vec<T>::N;
  const i64 row = blockIdx.x;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (i >= f) return;
  const Vec<T> g = load(gate_up + row * 2 * f + i), u = load(gate_up + row * 2 * f + f + i);
  Vec<T> out;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float a = up(g.v[j]);
    out.v[j] = down<T>(a / (1.f + expf(-a)) * up(u.v[j]));
  }
  store(y + row * f + i, out);
}

// d gate = dy·u·(s + silu·(1 − s)), d up = dy·silu, with s = sigmoid(gate), silu = gate·s.
template <class T> __device__ inline void swiglu_back(const T* dy, const T* gate_up, T* d, int f) {
  constexpr int V = Vec<T>::N;
  const i64 row = blockIdx.x;
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (i >= f) return;
  const i64 at = row * 2 * f + i;
  const Vec<T> g = load(gate_up + at), u = load(gate_up + at + f), e = load(dy + row * f + i);
  Vec<T> dg, du;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float a = up(g.v[j]), s = 1.f / (1.f + expf(-a)), silu = a * s, y = up(e.v[j]);
    dg.v[j] = down<T>(y * up(u.v[j]) * (s + silu * (1.f - s)));
    du.v[j] = down<T>(y * silu);
  }
  store(d + at, dg);
  store(d + at + f, du);
}

// Half-split rotary embedding in place: one block a token; x [B,S,heads,D] with strides in elements, cos and sin [S,D/2].
// sign −1 turns back. D/2 is a multiple of 16 bytes of T.
template <class T>
__device__ inline void rope_token(T* x, const float* cos, const float* sin, int length, int heads, int half, i64 batch_stride,
                                  i64 token_stride, i64 head_stride, float sign) {
  constexpr int V = Vec<T>::N;
  const int b = blockIdx.x / length, s = blockIdx.x % length, per = half / V;
  T* token = x + b * batch_stride + s * token_stride;
  for (int t = threadIdx.x; t < heads * per; t += blockDim.x) {
    const int i = t % per * V;
    T* first = token + t / per * head_stride + i;
    Vec<T> a = load((const T*)first), c = load((const T*)first + half);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float co = cos[(i64)s * half + i + j], si = sign * sin[(i64)s * half + i + j];
      const float p = up(a.v[j]), q = up(c.v[j]);
      a.v[j] = down<T>(p * co - q * si);
      c.v[j] = down<T>(q * co + p * si);
    }
    store(first, a);
    store(first + half, c);
  }
}

#define ELEMENTWISE(T, name)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(256) swiglu_##name(const T* gate_up, T* y, int f) { swiglu_row<T>(gate_up, y, f); } \
  extern "C" __global__ void __launch_bounds__(256) swiglu_backward_##name(const T* dy, const T* gate_up, T* d, int f) {           \
    swiglu_back<T>(dy, gate_up, d, f);                                                                                             \
  }                                                                                                                                \
  extern "C" __global__ void __launch_bounds__(256)                                                                                \
      rope_##name(T* x, const float* cos, const float* sin, int length, int heads, int half, i64 batch_stride, i64 token_stride,   \
                  i64 head_stride, float sign) {                                                                                   \
    rope_token<T>(x, cos, sin, length, heads, half, batch_stride, token_stride, head_stride, sign);                                \
  }
ELEMENTWISE(bf16, bf16)
ELEMENTWISE(float, f32)
