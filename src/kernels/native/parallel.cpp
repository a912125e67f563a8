// Work for Rust closures on libtorch's own thread pool.
#include <ATen/Parallel.h>
#include <exception>

extern "C" {

// Calls `body(context)` once on each of `slots` threads at most, together, and returns when all have returned.
// `body` must not throw: it is Rust, which aborts instead.
void herd_parallel(int64_t slots, void (*body)(void*), void* context) {
  at::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context);
  });
}

int64_t herd_threads() {
  return at::get_num_threads();
}

void herd_set_threads(int64_t n) {
  at::set_num_threads(static_cast<int>(n));
}
}
