// CUDA C++ on a processor: the threads of a block are fibers that take turns, warp by warp; a barrier is where they change. What it shows is what
// a kernel computes, whether a barrier is missing (in one of both orders of the lanes a value comes too late or is gone too early),
// and reads of what nobody wrote, which give NaN. What it cannot show: caches, the order of memory accesses between barriers, time.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct int2 { int x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct Index { unsigned x, y, z; };

namespace on_cpu {

constexpr size_t STACK = 64 * 1024;
constexpr int WARP = 32;
enum class Waits { Nothing, Barrier, Warp, Ended };

#if defined(__x86_64__)
struct Context { void* stack_pointer = nullptr; };

// Keeps the registers that a call must keep, and goes on where another fiber left.
__attribute__((naked, noinline)) static void change(Context*, Context*) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

static void begin(Context* of, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;  // where the entry would return to; the stack is then as a call leaves it
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    of->stack_pointer = top;
}
#else
struct Context { ucontext_t of; };
static void change(Context* from, Context* to) { swapcontext(&from->of, &to->of); }
static void begin(Context* of, char* stack, void (*entry)()) {
    getcontext(&of->of);
    of->of.uc_stack.ss_sp = stack;
    of->of.uc_stack.ss_size = STACK;
    of->of.uc_link = nullptr;
    makecontext(&of->of, entry, 0);
}
#endif

struct Fiber {
    Context context;
    Index thread{};
    Waits waits = Waits::Nothing;
    int meetings = 0;  // of its warp, so far
};

// What the lanes of a warp hand each other. A lane can be one meeting ahead of another, not two.
struct Meeting { uint32_t words[WARP][6]; };

struct Block {
    std::vector<Fiber> fibers;
    std::unique_ptr<char[]> stacks;
    size_t stacks_for = 0;
    std::vector<Meeting> meetings;  // two a warp
    std::vector<unsigned char> shared;
    Context scheduler;
    Fiber* now = nullptr;
    Index index{}, dim{}, grid{};
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
    int deleted = 0;  // line of a barrier that nobody waits at
};

inline Block*& block() {
    static thread_local Block* of = nullptr;
    return of;
}

inline void wait(Waits for_what) {
    Block* of = block();
    Fiber* me = of->now;
    me->waits = for_what;
    change(&me->context, &of->scheduler);
}

inline void barrier(int line) {
    if (line != block()->deleted) wait(Waits::Barrier);
}

inline void enter() {
    Block* of = block();
    of->body(of->argument);
    wait(Waits::Ended);
}

inline int lane() { return static_cast<int>(block()->now->thread.x % WARP); }

// Hands words to the lanes of the warp and waits for theirs.
inline const Meeting& meet(const uint32_t* words, int count) {
    Block* of = block();
    Fiber* me = of->now;
    Meeting& here = of->meetings[me->thread.x / WARP * 2 + static_cast<unsigned>(me->meetings++ % 2)];
    std::memcpy(here.words[lane()], words, sizeof(uint32_t) * static_cast<size_t>(count));
    wait(Waits::Warp);
    return here;
}

// Runs a block. What went wrong, or null.
inline const char* run_block(Block& of, bool backwards) {
    const int n = static_cast<int>(of.fibers.size());
    for (int i = 0; i < n; ++i) {
        Fiber& fiber = of.fibers[static_cast<size_t>(i)];
        fiber = Fiber{};
        fiber.thread = {static_cast<unsigned>(i), 0, 0};
        begin(&fiber.context, of.stacks.get() + static_cast<size_t>(i) * STACK, enter);
    }
    std::memset(of.shared.data(), 0xff, of.shared.size());
    block() = &of;
    // A warp goes as far as it can before the next one begins.
    auto warp = [&](int first) {
        const int last = std::min(first + WARP, n);
        const auto begin = of.fibers.begin() + first, end = of.fibers.begin() + last;
        auto met = [&](const Fiber& fiber) { return fiber.waits == Waits::Warp && fiber.meetings == begin->meetings; };
        do {
            std::for_each(begin, end, [](Fiber& fiber) { fiber.waits = fiber.waits == Waits::Warp ? Waits::Nothing : fiber.waits; });
            for (int i = first; i < last; ++i) {
                Fiber& fiber = of.fibers[static_cast<size_t>(backwards ? first + last - 1 - i : i)];
                if (fiber.waits != Waits::Nothing) continue;
                of.now = &fiber;
                change(&of.scheduler, &fiber.context);
            }
        } while (std::all_of(begin, end, met));
    };
    const int warps = (n + WARP - 1) / WARP;
    for (;;) {
        for (int i = 0; i < warps; ++i) warp((backwards ? warps - 1 - i : i) * WARP);
        auto all = [&](Waits what) {
            return std::all_of(of.fibers.begin(), of.fibers.end(), [&](const Fiber& fiber) { return fiber.waits == what; });
        };
        if (all(Waits::Ended)) return nullptr;
        if (!all(Waits::Barrier)) return "the threads of a block do not all come to the same barrier";
        for (Fiber& fiber : of.fibers) fiber.waits = Waits::Nothing;
    }
}

// Runs a grid of blocks of threads in one row, on some threads of the machine.
inline const char* run(void (*body)(void*), void* argument, Index grid, Index dim, unsigned shared_bytes, bool backwards, int deleted) {
    if (dim.y != 1 || dim.z != 1 || dim.x == 0 || dim.x > 1024) return "blocks are to have 1 to 1024 threads in one row";
    const long long blocks = static_cast<long long>(grid.x) * grid.y * grid.z;
    std::atomic<long long> next{0};
    std::atomic<const char*> wrong{nullptr};
    auto work = [&] {
        static thread_local Block of;
        of.fibers.resize(dim.x);
        if (of.stacks_for < dim.x) {
            of.stacks.reset(new char[dim.x * STACK]);
            of.stacks_for = dim.x;
        }
        of.meetings.assign((dim.x + WARP - 1) / WARP * 2, Meeting{});
        of.shared.resize(shared_bytes);
        of.body = body, of.argument = argument, of.dim = dim, of.grid = grid, of.deleted = deleted;
        for (long long i = next++; i < blocks && !wrong; i = next++) {
            const long long b = backwards ? blocks - 1 - i : i;
            of.index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y), static_cast<unsigned>(b / grid.x / grid.y)};
            if (const char* what = run_block(of, backwards)) wrong = what;
        }
        block() = nullptr;
    };
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    if (cores == 1 || blocks < 4) {
        work();
    } else {
        std::vector<std::thread> others;
        for (unsigned i = 1; i < cores; ++i) others.emplace_back(work);
        work();
        for (std::thread& other : others) other.join();
    }
    return wrong;
}

inline float to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float half_to_float(uint32_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) return to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(fraction), -24);
    return to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint32_t float_to_half(float x) {
    const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u;
    if (std::isnan(x)) return 0x7fffu;
    const float size = std::fabs(x);
    if (size >= 65520.0f) return sign | 0x7c00u;
    if (size < 6.103515625e-05f) return sign | static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 24)));
    const uint32_t rounded = (bits & 0x7fffffffu) + 0xfffu + (bits >> 13 & 1u);
    return sign | ((rounded >> 13) - (112u << 10));
}

inline uint32_t float_to_bf16(float x) {
    const uint32_t bits = to_bits(x);
    if (std::isnan(x)) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

}  // namespace on_cpu

#define threadIdx (on_cpu::block()->now->thread)
#define blockIdx (on_cpu::block()->index)
#define blockDim (on_cpu::block()->dim)
#define gridDim (on_cpu::block()->grid)
#define DEVICE static inline
#define SHARED(type, name) type* name = reinterpret_cast<type*>(on_cpu::block()->shared.data())
#define KERNEL(name, Args, threads)                                                                                                  \
    static void body_##name(const Args& p);                                                                                          \
    extern "C" const size_t size_##name = sizeof(Args);                                                                              \
    extern "C" const int threads_##name = threads;                                                                                   \
    extern "C" const char* launch_##name(void* args, Index grid, Index block, unsigned shared_bytes, bool backwards, int deleted) {  \
        auto body = [](void* of) { body_##name(*static_cast<Args*>(of)); };                                                          \
        return on_cpu::run(body, args, grid, block, shared_bytes, backwards, deleted);                                               \
    }                                                                                                                                \
    static void body_##name(const Args& p)

using std::max;
using std::min;

#define __syncthreads() on_cpu::barrier(__LINE__)
inline float __uint_as_float(uint32_t bits) { return on_cpu::to_float(bits); }
inline uint32_t __float_as_uint(float x) { return on_cpu::to_bits(x); }
inline float __int_as_float(int bits) { return on_cpu::to_float(static_cast<uint32_t>(bits)); }

inline float __shfl_xor_sync(unsigned, float x, int mask) {
    const uint32_t bits = on_cpu::to_bits(x);
    const int from = on_cpu::lane() ^ mask;
    return on_cpu::to_float(on_cpu::meet(&bits, 1).words[from][0]);
}

// Ties go away from zero.
inline uint32_t to_tf32(float x) {
    const uint32_t bits = on_cpu::to_bits(x);
    if (!std::isfinite(x)) return bits;
    return (bits + 0x1000u) & ~0x1fffu;
}
inline uint32_t to_f16x2(float low, float high) { return on_cpu::float_to_half(low) | on_cpu::float_to_half(high) << 16; }
inline uint32_t to_bf16x2(float low, float high) { return on_cpu::float_to_bf16(low) | on_cpu::float_to_bf16(high) << 16; }
inline float from_f16(uint16_t bits) { return on_cpu::half_to_float(bits); }

// mma.m16n8k8 of tf32 and mma.m16n8k16 of halves (PTX ISA, "Matrix fragments for mma.m16n8k8" and "mma.m16n8k16"): with g = lane / 4 and
// t = lane % 4, a lane has words [g][t], [g + 8][t], [g][t + 4], [g + 8][t + 4] of a, words [t][g], [t + 4][g] of b, and
// elements [g][2 t], [g][2 t + 1], [g + 8][2 t], [g + 8][2 t + 1] of d.
template <int MATH>
void mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const int lane = on_cpu::lane(), g = lane / 4, t = lane % 4;
    const on_cpu::Meeting& all = on_cpu::meet(words, 6);
    for (int e = 0; e < 4; ++e) {
        const int row = g + e / 2 * 8, column = 2 * t + e % 2;
        float sum = 0.0f;
        for (int k = 0; k < 8; ++k) {
            const uint32_t x = all.words[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2], y = all.words[column * 4 + k % 4][4 + k / 4];
            if (MATH == 1) {
                sum += on_cpu::to_float(x & ~0x1fffu) * on_cpu::to_float(y & ~0x1fffu);
            } else if (MATH == 2) {
                sum += on_cpu::half_to_float(x & 0xffffu) * on_cpu::half_to_float(y & 0xffffu);
                sum += on_cpu::half_to_float(x >> 16) * on_cpu::half_to_float(y >> 16);
            } else {
                sum += on_cpu::to_float(x << 16) * on_cpu::to_float(y << 16);
                sum += on_cpu::to_float(x & 0xffff0000u) * on_cpu::to_float(y & 0xffff0000u);
            }
        }
        d[e] += sum;
    }
}
