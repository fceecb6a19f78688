// Runs a function over ranges of work items on several threads.
#pragma once

#include <stdint.h>

#include <functional>

namespace adt {
namespace cpu {

// Splits [0, items) into at most `threads` runs of neighbouring items and calls body(first, last) for each.
void parallel_for(int64_t items, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace cpu
}  // namespace adt
