// Threads come from the OpenMP runtime that torch has already loaded, found by name at run time. A second runtime,
// or threads of our own, would compete with torch's workers, which go on spinning for a while after each operator;
// and the module needs no OpenMP library of its own to load. Without one, plain threads are started for each call.
#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <system_error>
#include <thread>
#include <vector>

#include "../kernels.h"

namespace adt {
namespace cpu {

namespace {

// The entry point behind `#pragma omp parallel` in GCC's runtime; LLVM's and Intel's export it too.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
using ThreadQuery = int (*)();

struct OpenMP {
  ParallelRegion parallel;
  ThreadQuery thread_number, thread_count;
  explicit operator bool() const { return parallel != nullptr && thread_number != nullptr && thread_count != nullptr; }
};

// In a forked child the OpenMP runtime would wait for threads that only its parent has; plain threads serve there.
bool forked = false;
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

const OpenMP& openmp() {
  static const OpenMP found = {reinterpret_cast<ParallelRegion>(dlsym(RTLD_DEFAULT, "GOMP_parallel")),
                               reinterpret_cast<ThreadQuery>(dlsym(RTLD_DEFAULT, "omp_get_thread_num")),
                               reinterpret_cast<ThreadQuery>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"))};
  return found;
}

struct Job {
  int64_t items;
  const std::function<void(int64_t, int64_t)>& body;

  void run_share(int64_t part, int64_t parts) const {
    const int64_t first = items * part / parts, last = items * (part + 1) / parts;
    if (first < last) body(first, last);
  }
};

void run_openmp_share(void* data) {
  static_cast<const Job*>(data)->run_share(openmp().thread_number(), openmp().thread_count());
}

}  // namespace

void parallel_for(int64_t items, int threads, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t parts = items < threads ? items : threads;
  Job job{items, body};
  if (parts <= 1) return job.run_share(0, 1);
  if (openmp() && !forked) return openmp().parallel(run_openmp_share, &job, static_cast<unsigned>(parts), 0);
  std::vector<std::thread> helpers;
  helpers.reserve(parts - 1);
  int64_t given_away = 1;  // part 0 is this thread's
  try {
    for (; given_away < parts; ++given_away) {
      helpers.emplace_back([&job, given_away, parts] { job.run_share(given_away, parts); });
    }
  } catch (const std::system_error&) {  // the system has no more threads: this one does what is left
    for (int64_t part = given_away; part < parts; ++part) job.run_share(part, parts);
  }
  job.run_share(0, parts);
  for (std::thread& helper : helpers) helper.join();
}

const char* thread_runtime() { return openmp() && !forked ? "openmp (shared with torch)" : "std::thread"; }

}  // namespace cpu
}  // namespace adt
