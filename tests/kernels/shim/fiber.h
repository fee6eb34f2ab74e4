// A stack of its own for each CUDA thread, and the switch between stacks.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <ucontext.h>

namespace shim {

#if defined(__x86_64__)
// swapcontext asks the kernel for the signal mask each time; ten thousand switches a tile make that the whole run time.
extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.globl shim_switch
shim_switch:
    pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx
    ret
)");
#endif

struct Fiber {
    static constexpr size_t stack_bytes = 128 * 1024;
    using Body = void (*)();
    char* stack = nullptr;

#if defined(__x86_64__)
    void* pointer = nullptr;
    static inline void* scheduler = nullptr;
    static inline void** inside = nullptr;

    void start(Body body) {
        if (!stack) stack = static_cast<char*>(aligned_alloc(64, stack_bytes));
        void** top = reinterpret_cast<void**>(stack + stack_bytes);
        *--top = nullptr;  // where `body` would return to; it never does
        *--top = reinterpret_cast<void*>(body);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        pointer = top;
    }
    void enter() {
        inside = &pointer;
        shim_switch(&scheduler, pointer);
    }
    static void leave() { shim_switch(inside, scheduler); }
#else
    ucontext_t context;
    static inline ucontext_t scheduler;
    static inline ucontext_t* inside = nullptr;

    void start(Body body) {
        if (!stack) stack = static_cast<char*>(aligned_alloc(64, stack_bytes));
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = stack_bytes;
        context.uc_link = nullptr;
        makecontext(&context, body, 0);
    }
    void enter() {
        inside = &context;
        swapcontext(&scheduler, &context);
    }
    static void leave() { swapcontext(inside, &scheduler); }
#endif
};

}  // namespace shim
