// A stand-in for the CUDA runtime and NCCL in one process: memory is the host's, streams are threads, ranks are threads of
// the test. It does what the manuals say where herd relies on it: streams run in order and apart from the host, events
// order them, calls on non-blocking communicators may return ncclInProgress, abort frees what waits for a peer.
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

typedef int cudaError_t;
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
const int cudaSuccess = 0, cudaErrorNotReady = 600;

// NCCL's own header, where the machine has it, makes the compiler compare every signature and number below.
#ifdef REAL_NCCL
#include <nccl.h>
#else
#include <cstddef>
typedef int ncclResult_t, ncclDataType_t, ncclRedOp_t;
typedef struct ncclComm* ncclComm_t;
typedef struct { char internal[128]; } ncclUniqueId;
struct ncclConfig_t { size_t size; unsigned magic, version; int blocking; };
const int ncclSuccess = 0, ncclInvalidArgument = 4, ncclRemoteError = 6, ncclInProgress = 7;
const int ncclUint8 = 1, ncclInt64 = 4, ncclFloat32 = 7, ncclFloat64 = 8, ncclBfloat16 = 9, ncclSum = 0, ncclMax = 2;
#endif
// What src/wire/nccl/ffi.rs says.
static_assert(ncclSuccess == 0 && ncclInProgress == 7 && ncclSum == 0 && ncclMax == 2 && sizeof(ncclUniqueId) == 128, "");
static_assert(ncclUint8 == 1 && ncclInt64 == 4 && ncclFloat32 == 7 && ncclFloat64 == 8 && ncclBfloat16 == 9, "");
static_assert(offsetof(ncclConfig_t, size) == 0 && offsetof(ncclConfig_t, magic) == 8, "");
static_assert(offsetof(ncclConfig_t, version) == 12 && offsetof(ncclConfig_t, blocking) == 16, "");

namespace {

// Never destroyed: streams still wait when the process ends.
std::mutex& mutex = *new std::mutex; // of everything below
std::condition_variable& changed = *new std::condition_variable;
using Lock = std::unique_lock<std::mutex>;
using Clock = std::chrono::steady_clock;

struct Stream {
  std::deque<std::function<void()>> work;
  Stream() {
    std::thread([this] {
      for (;;) {
        std::function<void()> next;
        {
          Lock lock(mutex);
          changed.wait(lock, [this] { return !work.empty(); });
          next = std::move(work.front());
          work.pop_front();
        }
        next();
      }
    }).detach();
  }
  void push(std::function<void()> f) {
    Lock lock(mutex);
    work.push_back(std::move(f));
    changed.notify_all();
  }
};

Stream* stream(cudaStream_t s) {
  static Stream* compute = new Stream;
  return s ? reinterpret_cast<Stream*>(s) : compute;
}

struct Event {
  bool recorded = false, reached = false;
  Clock::time_point when;
};
using EventRef = std::shared_ptr<Event>;
EventRef& event(cudaEvent_t e) { return *reinterpret_cast<EventRef*>(e); }

struct Part {
  const void* in;
  void* out;
};

// The ranks that share a unique id.
struct Group {
  int size = 0, joined = 0;
  bool aborted = false;
  std::map<long, std::map<int, Part>> calls;
  std::map<long, int> computed, left;
};
auto& groups = *new std::map<std::string, std::shared_ptr<Group>>;
int next_id = 1, failures = 0;

enum What { AllReduce, ReduceScatter, AllGather, Broadcast, SendRecv };

size_t width(int type) { return type == ncclUint8 ? 1 : type == ncclBfloat16 ? 2 : type == ncclFloat32 ? 4 : 8; }

} // namespace

struct ncclComm {
  std::shared_ptr<Group> group;
  int rank;
  long calls = 0;
  int in_progress = 0;
};

static ncclResult_t start(What what, const void* in, void* out, size_t n, int type, int op, int root, ncclComm* comm,
                          cudaStream_t s) {
  auto group = comm->group;
  const int rank = comm->rank, size = group->size;
  const long call = comm->calls++;
  const size_t bytes = n * width(type);
  comm->in_progress = 2;
  stream(s)->push([=] {
    Lock lock(mutex);
    auto all = [&](auto ready) {
      changed.notify_all();
      changed.wait(lock, [&] { return group->aborted || ready(); });
      return !group->aborted;
    };
    group->calls[call][rank] = {in, out};
    if (!all([&] { return (int)group->calls[call].size() == size; })) return;
    auto parts = group->calls[call];
    std::vector<char> result;
    auto add = [&](size_t at) { // float sums of n elements from `at`
      result.resize(bytes);
      for (size_t i = 0; i < n; i++) {
        float x = ((const float*)parts[0].in)[at + i];
        for (int r = 1; r < size; r++) {
          float y = ((const float*)parts[r].in)[at + i];
          x = op == ncclSum ? x + y : (x > y ? x : y);
        }
        ((float*)result.data())[i] = x;
      }
    };
    auto copy = [&](const void* p) { result.insert(result.end(), (const char*)p, (const char*)p + bytes); };
    if (what == AllReduce) add(0);
    if (what == ReduceScatter) add(rank * n);
    if (what == AllGather)
      for (int r = 0; r < size; r++) copy(parts[r].in);
    if (what == Broadcast) copy(parts[root].in);
    if (what == SendRecv && out) copy(parts[0].in);
    group->computed[call]++;
    if (!all([&] { return group->computed[call] == size; })) return;
    if (!result.empty()) memcpy(out, result.data(), result.size());
  });
  return (ncclResult_t)ncclInProgress;
}

extern "C" {

cudaError_t cudaSetDevice(int) { return (cudaError_t)cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "a fake CUDA error"; }
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  snprintf(text, length, "0000:%02x:00.0", device);
  return (cudaError_t)cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
  *out = (cudaStream_t) new Stream;
  return (cudaError_t)(flags == 1 ? cudaSuccess : 1);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = (cudaEvent_t) new EventRef(new Event);
  return (cudaError_t)cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete &event(e);
  return (cudaError_t)cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  EventRef ref = event(e);
  {
    Lock lock(mutex);
    ref->recorded = true;
  }
  stream(s)->push([ref] {
    Lock lock(mutex);
    ref->reached = true;
    ref->when = Clock::now();
    changed.notify_all();
  });
  return (cudaError_t)cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  EventRef ref = event(e);
  stream(s)->push([ref] {
    Lock lock(mutex);
    changed.wait(lock, [&] { return !ref->recorded || ref->reached; });
  });
  return (cudaError_t)cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  Lock lock(mutex);
  return (cudaError_t)(event(e)->reached ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t a, cudaEvent_t b) {
  Lock lock(mutex);
  *out = std::chrono::duration<float, std::milli>(event(b)->when - event(a)->when).count();
  return (cudaError_t)cudaSuccess;
}

ncclResult_t ncclGetVersion(int* out) {
  *out = 22809;
  return (ncclResult_t)ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t) { return "a fake NCCL error"; }
const char* ncclGetLastError(ncclComm_t) { return "(injected)"; }
ncclResult_t ncclGetUniqueId(ncclUniqueId* out) {
  Lock lock(mutex);
  memset(out, 0, sizeof *out);
  snprintf(out->internal, sizeof out->internal, "group %d", next_id++);
  return (ncclResult_t)ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (config->magic != 0xcafebeef || config->size < 20 || config->version < 21400 || config->blocking != 0)
    return (ncclResult_t)ncclInvalidArgument;
  Lock lock(mutex);
  auto& group = groups[std::string(id.internal)];
  if (!group) group = std::make_shared<Group>();
  group->size = size;
  group->joined++;
  *out = new ncclComm{group, rank};
  return (ncclResult_t)ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* out) {
  Lock lock(mutex);
  const bool busy = comm->group->joined < comm->group->size || (comm->in_progress > 0 && comm->in_progress-- > 0);
  *out = (ncclResult_t)(failures > 0 ? ncclRemoteError : busy ? ncclInProgress : ncclSuccess);
  return (ncclResult_t)ncclSuccess;
}
// Calls between the two are made together, at the end.
static thread_local bool grouped = false;
static thread_local std::vector<ncclComm_t> given_up;
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (grouped) {
    given_up.push_back(comm);
    return (ncclResult_t)ncclSuccess;
  }
  Lock lock(mutex);
  comm->group->aborted = true;
  changed.notify_all();
  delete comm;
  return (ncclResult_t)ncclSuccess;
}
ncclResult_t ncclGroupStart() {
  grouped = true;
  return (ncclResult_t)ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  grouped = false;
  for (ncclComm_t comm : given_up) ncclCommAbort(comm);
  given_up.clear();
  return (ncclResult_t)ncclSuccess;
}
ncclResult_t ncclAllReduce(const void* in, void* out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t s) {
  return start(AllReduce, in, out, n, t, op, 0, c, s);
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                               cudaStream_t s) {
  return start(ReduceScatter, in, out, n, t, op, 0, c, s);
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t s) {
  return start(AllGather, in, out, n, t, 0, 0, c, s);
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                           cudaStream_t s) {
  return start(Broadcast, in, out, n, t, 0, root, c, s);
}
ncclResult_t ncclSend(const void* in, size_t n, ncclDataType_t t, int, ncclComm_t c, cudaStream_t s) {
  return start(SendRecv, in, nullptr, n, t, 0, 0, c, s);
}
ncclResult_t ncclRecv(void* out, size_t n, ncclDataType_t t, int, ncclComm_t c, cudaStream_t s) {
  return start(SendRecv, out, out, n, t, 0, 0, c, s);
}

// For the test: computation of that many milliseconds that ends by filling `n` floats, and a peer that NCCL loses.
void fake_compute(int milliseconds, float* out, size_t n, float value) {
  stream(nullptr)->push([=] {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    for (size_t i = 0; i < n; i++) out[i] = value;
  });
}
void fake_lose_peer(int yes) {
  Lock lock(mutex);
  failures = yes;
}
}
