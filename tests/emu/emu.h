// CUDA C++ on a CPU: the threads of a block are fibers of one thread of the host, resumed in an order drawn from a seed. A kernel's
// source is compiled as it is, by the host's compiler, with this file before it. Shared memory knows who touched what since the last
// barrier and counts races; a block whose threads wait for each other in vain is told.
//
// What it shows: sums, indices, barriers, shuffles. What it does not: speed, alignment of registers, memory that several blocks write
// (a kernel whose blocks depend on each other gives other bits under another seed, which the tests compare).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <vector>

#define HERD_EMULATED
#define __global__
#define __device__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emu {

enum class State { ready, barrier, shuffle, done };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  unsigned thread = 0;
  State state = State::done;
};

constexpr size_t kStack = 64 << 10, kGuard = 4096;
constexpr unsigned kWarp = 32;

struct Host {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> lanes; // what each thread brings to a shuffle
  Fiber* now = nullptr;
  void* scheduler = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  dim3 thread, block, block_size, grid;
  std::mt19937 order;
  long epoch = 0; // barriers passed
  long races = 0;
  std::string failure;
};
inline thread_local Host host;

extern "C" void emu_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.weak emu_switch
.type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "the switch of fibers is written for x86-64"
#endif

// The running thread stops until the scheduler takes it up again.
inline void rest(State why) {
  Host& h = host;
  h.now->state = why;
  emu_switch(&h.now->stack_pointer, h.scheduler);
}

inline void first() {
  host.body(host.argument);
  rest(State::done);
  std::abort(); // a fiber that is done is never resumed
}

inline void begin(Fiber& f, unsigned thread) {
  if (!f.stack) { // with a page below that nobody may touch
    void* all = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED || mprotect(all, kGuard, PROT_NONE) != 0) throw std::runtime_error("no memory for a fiber");
    f.stack = static_cast<char*>(all) + kGuard;
  }
  void** top = reinterpret_cast<void**>(f.stack + kStack);
  *--top = nullptr; // the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(&first);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f.stack_pointer = top;
  f.thread = thread;
  f.state = State::ready;
}

inline void resume(Fiber& f) {
  Host& h = host;
  h.now = &f;
  h.thread.x = f.thread;
  emu_switch(&h.scheduler, f.stack_pointer);
}

// One block, from its first thread's start to the last's end. Its shared memory is that of the block before it, with a new epoch.
inline void run_block() {
  Host& h = host;
  const unsigned n = h.block_size.x;
  h.fibers.resize(std::max<size_t>(h.fibers.size(), n));
  h.lanes.assign(n, 0);
  h.epoch++;
  for (unsigned i = 0; i < n; i++) begin(h.fibers[i], i);
  std::vector<unsigned> turn(n);
  for (unsigned i = 0; i < n; i++) turn[i] = i;
  for (;;) {
    std::shuffle(turn.begin(), turn.end(), h.order);
    bool moved = false;
    for (unsigned i : turn)
      if (h.fibers[i].state == State::ready) resume(h.fibers[i]), moved = true;
    unsigned done = 0, waiting = 0;
    for (unsigned w = 0; w < n; w += kWarp) {
      const unsigned end = std::min(n, w + kWarp);
      unsigned shuffling = 0;
      for (unsigned i = w; i < end; i++) {
        shuffling += h.fibers[i].state == State::shuffle;
        done += h.fibers[i].state == State::done;
        waiting += h.fibers[i].state == State::barrier;
      }
      if (shuffling == end - w) { // the whole warp is there, as the mask of a shuffle says
        for (unsigned i = w; i < end; i++) h.fibers[i].state = State::ready;
        moved = true;
      }
    }
    if (done == n) return;
    if (waiting == n) {
      for (unsigned i = 0; i < n; i++) h.fibers[i].state = State::ready;
      h.epoch++;
      continue;
    }
    if (!moved) throw std::runtime_error("threads wait for each other: " + std::to_string(waiting) + " at a barrier, " +
                                         std::to_string(done) + " done, of " + std::to_string(n));
  }
}

// Blocks in an order of their own: none may depend on another.
inline void launch(dim3 grid, dim3 block, unsigned seed, void (*body)(void*), void* argument) {
  Host& h = host;
  h.order.seed(seed);
  h.grid = grid, h.block_size = block, h.body = body, h.argument = argument;
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y);
  for (uint64_t i = 0; i < blocks.size(); i++) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), h.order);
  for (uint64_t b : blocks) {
    h.block = {unsigned(b % grid.x), unsigned(b / grid.x), 1};
    run_block();
    if (!h.failure.empty()) throw std::runtime_error(h.failure);
  }
}

// Shared memory of a block. A fault inside a fiber is kept until the block has ended: exceptions do not cross stacks.
template <class T, size_t N> struct Shared {
  T value[N];
  long written[N] = {}, read[N] = {}; // in which epoch last
  int writer[N], reader[N];           // by whom; −1: by several

  struct Place {
    Shared& all;
    size_t i;
    operator T() const {
      const int me = int(host.now->thread);
      if (all.written[i] == host.epoch && all.writer[i] != me) host.races++;
      all.reader[i] = all.read[i] == host.epoch && all.reader[i] != me ? -1 : me;
      all.read[i] = host.epoch;
      return all.value[i];
    }
    T operator=(T x) {
      const int me = int(host.now->thread);
      if ((all.written[i] == host.epoch && all.writer[i] != me) || (all.read[i] == host.epoch && all.reader[i] != me)) host.races++;
      all.writer[i] = me;
      all.written[i] = host.epoch;
      return all.value[i] = x;
    }
  };

  Place operator[](size_t i) {
    if (i >= N) {
      host.failure = "place " + std::to_string(i) + " of " + std::to_string(N) + " in shared memory";
      i = 0;
    }
    return {*this, i};
  }
};

template <class T> T shuffle(T x, int mask) {
  static_assert(sizeof(T) <= 8);
  Host& h = host;
  const unsigned me = h.now->thread;
  std::memcpy(&h.lanes[me], &x, sizeof x);
  rest(State::shuffle);
  T out;
  std::memcpy(&out, &host.lanes[me ^ unsigned(mask)], sizeof out);
  rest(State::shuffle); // nobody writes before all have read
  return out;
}

} // namespace emu

#define threadIdx emu::host.thread
#define blockIdx emu::host.block
#define blockDim emu::host.block_size
#define gridDim emu::host.grid
#define SHARED(type, name, count) static thread_local emu::Shared<type, count> name

inline void __syncthreads() { emu::rest(emu::State::barrier); }
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) { return emu::shuffle(x, mask); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
inline float __int_as_float(int i) { return __uint_as_float(unsigned(i)); }
