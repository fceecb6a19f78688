// A fiber: a call with a stack of its own, which can be left in the middle and entered again.
//
// Switching takes a few instructions (fiber.cpp); POSIX's swapcontext, for other processors than x86-64, costs a system
// call. AddressSanitizer must be told of each change of stack.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the caller's registers on its stack, stores the stack pointer in *from and goes on where `to` was left.
extern "C" __attribute__((visibility("hidden"))) void adt_switch_stack(void** from, void* to);
#else
#include <ucontext.h>
#endif

namespace cuda_emulator {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 64 << 10;

  // The first enter() calls `body`. It must begin with entered() and end with leave(true).
  Fiber(char* stack, void (*body)()) : stack_(stack) {
    *guard() = kGuard;
#if defined(__x86_64__)
    // What adt_switch_stack takes up: six registers, the address to return to, and the place of body()'s own return
    // address, which aligns the stack as after a call.
    void** frame = reinterpret_cast<void**>(stack + kStackBytes) - 8;
    for (int i = 0; i < 8; ++i) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void*>(body);
    inside_ = frame;
#else
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack;
    inside_.uc_stack.ss_size = kStackBytes;
    inside_.uc_link = nullptr;
    makecontext(&inside_, body, 0);
#endif
  }

  // From outside: runs the body up to its next leave().
  void enter() {
    [[maybe_unused]] void* outer_frames = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&outer_frames, stack_, kStackBytes);
#endif
    swap(outside_, inside_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(outer_frames, nullptr, nullptr);
#endif
  }

  // From inside: returns from enter(), and comes back on the next one unless it leaves for ever.
  void leave([[maybe_unused]] bool for_ever = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &inner_frames_, outer_stack_, outer_stack_bytes_);
#endif
    swap(inside_, outside_);
    entered();
  }

  // From inside, after each switch to it.
  void entered() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(inner_frames_, &outer_stack_, &outer_stack_bytes_);
#endif
  }

  bool overflowed() const { return *guard() != kGuard; }

 private:
  static constexpr uint64_t kGuard = 0xadf17e57badc0ffe;
  uint64_t* guard() const { return reinterpret_cast<uint64_t*>(stack_); }  // the last word that a stack may reach

#if defined(__x86_64__)
  using Context = void*;  // a stack pointer
  static void swap(Context& from, Context& to) { adt_switch_stack(&from, to); }
#else
  using Context = ucontext_t;
  static void swap(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

  char* stack_;
  Context inside_{}, outside_{};
#if defined(__SANITIZE_ADDRESS__)
  void* inner_frames_ = nullptr;
  const void* outer_stack_ = nullptr;
  size_t outer_stack_bytes_ = 0;
#endif
};

}  // namespace cuda_emulator
