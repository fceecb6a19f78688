// The switch of stacks: what a function must keep for its caller goes on the old stack and comes from the new one.
#include "fiber.h"

#if defined(__x86_64__)
asm(R"(
    .text
    .hidden adt_switch_stack
    .globl adt_switch_stack
    .type adt_switch_stack, @function
adt_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size adt_switch_stack, . - adt_switch_stack
)");
#endif
