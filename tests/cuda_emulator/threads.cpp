// Runs kernels: blocks one after another, each thread of a block in a fiber. A thread keeps its turn until it must wait
// for others or ends. So a result that depends on the order of turns is a race, and waiting that never ends is seen.
//
// ADT_EMULATED_ORDER, read at every launch, is "forward" (the default) or "reverse": of blocks, warps and lanes.
#include <stdlib.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

#include "fiber.h"

// The linker's names for the ends of the section behind __shared__.
extern "C" __attribute__((visibility("hidden"))) char __start_emulated_shared_memory[], __stop_emulated_shared_memory[];

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {

namespace {

constexpr int kWarpSize = 32;
constexpr unsigned kMaxBlockThreads = 1024;

enum class State { ready, at_barrier, at_shuffle, ended };

void run_kernel();

struct Thread {
  Thread(char* stack, uint3 index, int lane) : fiber(stack, run_kernel), index(index), lane(lane) {}

  Fiber fiber;
  uint3 index;
  int lane;
  State state = State::ready;
  Site site{};            // where it waits
  unsigned mask = 0;      // at a shuffle: the lanes it waits for,
  uint64_t bits = 0;      // what it gives them,
  int source = 0;         // whom it takes from
  uint64_t received = 0;  // and what that one gave
};

Thread* current = nullptr;  // whose turn it is
const std::function<void()>* current_kernel = nullptr;
cudaError_t last_error = cudaSuccess;

void run_kernel() {
  current->fiber.entered();
  (*current_kernel)();
  current->state = State::ended;
  current->fiber.leave(true);
}

void wait(State state, Site site) {
  current->state = state;
  current->site = site;
  current->fiber.leave();
}

std::string text(unsigned number) { return std::to_string(number); }
std::string text(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

[[noreturn]] void fail(const std::string& what, const Thread& thread) {
  throw std::runtime_error("emulated CUDA: " + what + " (block " + text(blockIdx.x) + ", thread " +
                           text(thread.index.x) + (thread.state == State::ended ? "" : ", at " + text(thread.site)) +
                           ")");
}

class Block {
 public:
  Block(char* stacks, bool reverse) : reverse_(reverse) {
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    threads_.reserve(count);  // a fiber that has begun must stay where it is
    for (unsigned i = 0; i < count; ++i) {
      const uint3 index{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      threads_.emplace_back(stacks + i * Fiber::kStackBytes, index, static_cast<int>(i % kWarpSize));
    }
  }

  void run() {
    do {
      for (int i = 0, warps = (size() + kWarpSize - 1) / kWarpSize; i < warps; ++i) {
        run_warp((reverse_ ? warps - 1 - i : i) * kWarpSize);
      }
    } while (pass_barrier());
  }

 private:
  int size() const { return static_cast<int>(threads_.size()); }

  // Runs the warp until all its threads have ended or wait for other warps.
  void run_warp(int first) {
    const int lanes = size() - first < kWarpSize ? size() - first : kWarpSize;
    do {
      for (int i = 0; i < lanes; ++i) take_turn(threads_[first + (reverse_ ? lanes - 1 - i : i)]);
    } while (pass_shuffle(&threads_[first], lanes));
  }

  void take_turn(Thread& thread) {
    if (thread.state != State::ready) return;
    current = &thread;
    threadIdx = thread.index;
    thread.fiber.enter();
    if (thread.fiber.overflowed()) fail("a thread's stack overflowed", thread);
  }

  // Lets the lanes that wait at a shuffle go on; they all must be there. Says whether there were any.
  bool pass_shuffle(Thread* warp, int lanes) {
    const Thread* first = nullptr;
    for (int i = 0; i < lanes && !first; ++i) {
      if (warp[i].state == State::at_shuffle) first = &warp[i];
    }
    if (!first) return false;
    for (int i = 0; i < kWarpSize; ++i) {
      const bool in_mask = first->mask >> i & 1u, exists = i < lanes;
      const bool here = exists && warp[i].state == State::at_shuffle;
      if (in_mask && !here) fail("lane " + text(i) + " is missing from a shuffle it is in the mask of", *first);
      if (here && !in_mask) fail("lane " + text(i) + " is at a shuffle whose mask is without it", warp[i]);
      if (here && (warp[i].mask != first->mask || !(warp[i].site == first->site))) {
        fail("the lanes of a warp are at different shuffles, one at " + text(first->site), warp[i]);
      }
      if (here && !(first->mask >> warp[i].source & 1u)) fail("a lane reads from one that takes no part", warp[i]);
    }
    for (int i = 0; i < lanes; ++i) {
      if (warp[i].state == State::at_shuffle) warp[i].received = warp[warp[i].source].bits;
    }
    for (int i = 0; i < lanes; ++i) {
      if (warp[i].state == State::at_shuffle) warp[i].state = State::ready;
    }
    return true;
  }

  // Lets the block go on from a barrier, or says that it has ended; every thread must have come as far.
  bool pass_barrier() {
    for (const Thread& thread : threads_) {
      if (thread.state != threads_[0].state) {
        fail("threads ended before a barrier that others wait at", thread.state == State::ended ? threads_[0] : thread);
      }
      if (thread.state == State::at_barrier && !(thread.site == threads_[0].site)) {
        fail("threads wait at different barriers, one at " + text(threads_[0].site), thread);
      }
    }
    if (threads_[0].state == State::ended) return false;
    for (Thread& thread : threads_) thread.state = State::ready;
    return true;
  }

  std::vector<Thread> threads_;
  bool reverse_;
};

// Shared memory begins as NaN.
void poison_shared_memory() {
  memset(__start_emulated_shared_memory, 0xff, __stop_emulated_shared_memory - __start_emulated_shared_memory);
}

bool reverse_order() {
  const char* order = getenv("ADT_EMULATED_ORDER");
  if (!order || !strcmp(order, "forward")) return false;
  if (!strcmp(order, "reverse")) return true;
  throw std::runtime_error(std::string("ADT_EMULATED_ORDER must be forward or reverse, got ") + order);
}

}  // namespace

void wait_for_block(Site site) { wait(State::at_barrier, site); }

int lane() { return current->lane; }

uint64_t exchange(unsigned mask, uint64_t bits, int source, Site site) {
  current->mask = mask;
  current->bits = bits;
  current->source = source;
  wait(State::at_shuffle, site);
  return current->received;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  gridDim = config.gridDim, blockDim = config.blockDim;
  const uint64_t threads = uint64_t{blockDim.x} * blockDim.y * blockDim.z;
  const bool fits = gridDim.x <= 0x7fffffffu && gridDim.y == 1 && gridDim.z == 1 && threads <= kMaxBlockThreads;
  if (!fits || gridDim.x == 0 || threads == 0) return last_error = cudaErrorInvalidConfiguration;
  const bool reverse = reverse_order();
  // Taken before the launch and given back after it: one that fails leaves unfinished calls on its stacks.
  static std::unique_ptr<char[]> kept;
  std::unique_ptr<char[]> stacks = std::move(kept);
  if (!stacks) stacks.reset(new char[kMaxBlockThreads * Fiber::kStackBytes]);
  current_kernel = &kernel;
  for (unsigned i = 0; i < gridDim.x; ++i) {
    blockIdx = {reverse ? gridDim.x - 1 - i : i, 0, 0};
    poison_shared_memory();
    Block(stacks.get(), reverse).run();
  }
  kept = std::move(stacks);
  return cudaSuccess;
}

}  // namespace cuda_emulator

// As CUDA's: the error of the last call that failed, which is forgotten when read.
cudaError_t cudaGetLastError() { return std::exchange(cuda_emulator::last_error, cudaSuccess); }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cuda_emulator::last_error = cudaErrorInvalidDevice;
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
  }
  return "unrecognized error code";
}
