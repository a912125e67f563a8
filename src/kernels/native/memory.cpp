// A caching allocator for libtorch's CPU tensors.
//
// glibc maps large blocks afresh and unmaps them on free, so each large tensor of each operation pays for page faults and
// zeroing by the kernel. Here a freed block goes to the free list of its size class and is handed out again with its pages.
// Classes step by 1/8 of a power of two: at most 12.5% of a block is unused, and unused whole pages are never touched.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <sys/mman.h>
#include <vector>

namespace {

constexpr size_t kAlign = 64;         // cache line, AVX-512 vector
constexpr size_t kSmallest = 256;     // with its header
constexpr size_t kMapped = 1 << 20;   // from here on blocks are mapped, below they come from malloc
constexpr int kSteps = 8;             // classes per power of two
constexpr int kClasses = 48 * kSteps; // up to 2^56
constexpr int kReach = kSteps / 4;    // a larger free block is taken if at most this many classes larger

// In front of the data of every block, one cache line.
struct alignas(kAlign) Header {
  size_t requested;
  size_t capacity; // whole block, with this header
  int cls;
};
static_assert(sizeof(Header) == kAlign, "the header must keep the data aligned");

struct Class {
  int index;
  size_t size;
};

// Smallest class that holds `bytes`.
Class class_of(size_t bytes) {
  if (bytes < kSmallest) bytes = kSmallest;
  int log = 63 - __builtin_clzll(bytes);
  size_t step = (size_t(1) << log) / kSteps;
  size_t over = bytes - (size_t(1) << log);
  int part = static_cast<int>((over + step - 1) / step);
  if (part == kSteps) {
    ++log;
    part = 0;
    step = (size_t(1) << log) / kSteps;
  }
  return {(log - 8) * kSteps + part, (size_t(1) << log) + part * step};
}

size_t pages(size_t size) { return (size + 4095) / 4096 * 4096; }

void* from_system(size_t size) {
  if (size < kMapped) {
    void* p = nullptr;
    return posix_memalign(&p, kAlign, size) == 0 ? p : nullptr;
  }
  // No MADV_HUGEPAGE: a huge page saves nothing measurable in a step, and where a hypervisor takes free memory back, its
  // first touch costs several times that of small pages (0.9-2.1 s/GB against 0.36 s/GB seen), all of it at start-up.
  void* p = mmap(nullptr, pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

void to_system(void* p, size_t size) {
  if (size < kMapped) {
    free(p);
  } else {
    munmap(p, pages(size));
  }
}

class CachingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    if (n == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    void* data = take(n);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }

  void copy_data(void* dest, const void* src, size_t count) const override {
    default_copy_data(dest, src, count);
  }

  size_t live = 0, peak = 0, reserved = 0;
  std::mutex mutex;

  // Gives every free block back to the system.
  void trim() {
    std::lock_guard<std::mutex> guard(mutex);
    trim_locked();
  }

 private:
  std::vector<Header*> free_[kClasses];

  void* take(size_t n) {
    const Class want = class_of(n + sizeof(Header));
    std::lock_guard<std::mutex> guard(mutex);
    Header* h = nullptr;
    const int last = want.index + (want.size >= kMapped ? kReach : 0);
    for (int c = want.index; c <= last && !h; ++c) {
      if (!free_[c].empty()) {
        h = free_[c].back();
        free_[c].pop_back();
      }
    }
    if (!h) {
      void* p = from_system(want.size);
      if (!p) {
        trim_locked();
        p = from_system(want.size);
      }
      TORCH_CHECK(p, "not enough memory: a tensor of ", n, " bytes was asked for, ", live, " bytes are in use");
      h = new (p) Header{0, want.size, want.index};
      reserved += want.size;
    }
    h->requested = n;
    live += n;
    if (live > peak) peak = live;
    return reinterpret_cast<char*>(h) + sizeof(Header);
  }

  void trim_locked() {
    for (auto& list : free_) {
      for (Header* h : list) {
        reserved -= h->capacity;
        to_system(h, h->capacity);
      }
      list.clear();
    }
  }

  void give(void* data) {
    Header* h = reinterpret_cast<Header*>(static_cast<char*>(data) - sizeof(Header));
    std::lock_guard<std::mutex> guard(mutex);
    live -= h->requested;
    free_[h->cls].push_back(h);
  }

  static void release(void* data);
};

// Never destroyed: tensors may outlive the static objects of any library.
CachingAllocator& allocator() {
  static CachingAllocator* one = new CachingAllocator;
  return *one;
}

void CachingAllocator::release(void* data) {
  if (data) allocator().give(data);
}

} // namespace

extern "C" {

void herd_memory_install() {
  c10::SetCPUAllocator(&allocator(), /*priority=*/100);
}

void herd_memory_stats(uint64_t* live, uint64_t* peak, uint64_t* reserved) {
  auto& a = allocator();
  std::lock_guard<std::mutex> guard(a.mutex);
  *live = a.live;
  *peak = a.peak;
  *reserved = a.reserved;
}

void herd_memory_reset_peak() {
  auto& a = allocator();
  std::lock_guard<std::mutex> guard(a.mutex);
  a.peak = a.live;
}

void herd_memory_trim() {
  allocator().trim();
}
}
