// Device memory: one anonymous file mapped twice. Tensors hold addresses of a mapping that nobody may touch, so that a host
// dereference ends the process; operators of the stand-in work through the other.
#pragma once
#include <ATen/ATen.h>
#include <algorithm>
#include <c10/core/CachingDeviceAllocator.h>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace standin {

using c10::CachingAllocator::StatType;
constexpr size_t kAlign = 512;                  // of CUDA's caching allocator
constexpr size_t kAddresses = size_t(64) << 30; // reserved, not used
constexpr uint16_t kPoison = 0x7fff;            // NaN in fp32, bf16, fp16 and f64; far outside any index as an integer

inline size_t number(const char* variable, size_t otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

class Allocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    std::lock_guard<std::mutex> guard(mutex_);
    if (!host_) map();
    // A tensor without elements has an address too: the fallback builds views on it.
    const size_t size = (std::max<size_t>(n, 1) + kAlign - 1) / kAlign * kAlign;
    const size_t at = take(size, n);
    blocks_[at] = {size, n};
    count(n, size, 1);
    return {device_ + at, device_ + at, &release, c10::Device(c10::kCUDA, 0)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(alias(to), alias(from), n); }

  // Where an operator finds what a tensor's address stands for.
  void* alias(const void* p) const { return host_ + (static_cast<const char*>(p) - device_); }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> guard(mutex_);
    return stats_;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> guard(mutex_);
    for (auto* array : {&stats_.allocated_bytes, &stats_.requested_bytes})
      for (auto& stat : *array) stat.reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> guard(mutex_);
    return {total_ - std::min(total_, used() + others_), total_};
  }

 private:
  struct Block { size_t size, requested; };
  std::mutex mutex_;
  char *host_ = nullptr, *device_ = nullptr;
  size_t carved_ = 0;                               // of the file, from its start
  std::map<size_t, Block> blocks_;                  // handed out, by place
  std::multimap<size_t, size_t> free_;              // size → place
  c10::CachingDeviceAllocator::DeviceStats stats_;
  const size_t total_ = number("STANDIN_MEMORY", kAddresses);
  const size_t others_ = number("STANDIN_OTHERS", 0); // bytes that other processes hold

  void map() {
    const int file = memfd_create("standin-device", MFD_CLOEXEC);
    TORCH_CHECK(file >= 0 && ftruncate(file, kAddresses) == 0, "stand-in: no file for device memory");
    auto view = [&](int mode) { return mmap(nullptr, kAddresses, mode, MAP_SHARED | MAP_NORESERVE, file, 0); };
    void *device = view(PROT_NONE), *host = view(PROT_READ | PROT_WRITE);
    TORCH_CHECK(device != MAP_FAILED && host != MAP_FAILED, "stand-in: device memory cannot be mapped");
    device_ = static_cast<char*>(device);
    host_ = static_cast<char*>(host);
    close(file);
  }

  size_t used() const { return stats_.allocated_bytes[static_cast<size_t>(StatType::AGGREGATE)].current; }

  size_t take(size_t size, size_t asked) {
    if (used() + others_ + size > total_) {
      stats_.num_ooms++;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", asked, " bytes. GPU 0 has a total capacity of ",
                       total_, " bytes of which ", total_ - std::min(total_, used() + others_), " bytes is free.");
    }
    const auto found = free_.find(size);
    if (found != free_.end()) {
      const size_t at = found->second;
      free_.erase(found);
      return at;
    }
    const size_t at = carved_;
    TORCH_CHECK(at + size <= kAddresses, "stand-in: more device memory than its mapping has");
    carved_ += size;
    poison(at, size);
    return at;
  }

  void poison(size_t at, size_t size) {
    auto* words = reinterpret_cast<uint16_t*>(host_ + at);
    std::fill(words, words + size / 2, kPoison);
  }

  void count(size_t requested, size_t size, int sign) {
    auto change = [&](auto& array, size_t amount) {
      auto& stat = array[static_cast<size_t>(StatType::AGGREGATE)];
      sign > 0 ? stat.increase(amount) : stat.decrease(amount);
    };
    change(stats_.requested_bytes, requested);
    change(stats_.allocated_bytes, size);
    change(stats_.reserved_bytes, size);
  }

  static void release(void* data);
  void give(void* data) {
    std::lock_guard<std::mutex> guard(mutex_);
    const size_t at = static_cast<char*>(data) - device_;
    const Block block = blocks_.at(at);
    blocks_.erase(at);
    count(block.requested, block.size, -1);
    poison(at, block.size); // whoever reads it after this, or before writing, reads NaN
    free_.emplace(block.size, at);
  }
};

// Never destroyed: tensors outlive static objects.
inline Allocator& allocator() {
  static Allocator* one = new Allocator;
  return *one;
}

inline void Allocator::release(void* data) {
  if (data) allocator().give(data);
}

// A CPU tensor over the bytes of a device tensor; anything else is itself.
inline at::Tensor host(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  const auto elements = static_cast<int64_t>(t.storage().nbytes() / t.element_size());
  auto whole = at::from_blob(allocator().alias(t.storage().data()), {elements}, [t](void*) {}, t.options().device(at::kCPU));
  return whole.as_strided(t.sizes(), t.strides(), t.storage_offset());
}

// A new device tensor with the values and strides of a CPU tensor.
inline at::Tensor to_device(const at::Tensor& t) {
  auto out = at::empty_strided(t.sizes(), t.strides(), t.options().device(at::Device(at::kCUDA, 0)));
  host(out).copy_(t);
  return out;
}

} // namespace standin
