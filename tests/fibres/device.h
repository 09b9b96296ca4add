// In place of kernels/cuda/device.h: CUDA's built-ins on a CPU, so that g++ compiles the kernels as they are.
//
// A thread of the GPU is a fibre (ucontext) here, and one runs at a time until it waits: at a barrier, in a shuffle,
// for a counter. Which runs next is decided by priorities that the launch's `order` draws: a fibre runs ahead as
// far as the barriers let it. What a missing barrier allows therefore happens, and shows as a wrong result, the
// more surely as shared memory begins as NaN. What no fibre shows: a missing fence, since each sees every write
// at once; speed; registers.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct alignas(16) float4 {
    float x, y, z, w;
};

struct dim3 {
    unsigned x, y;
};

inline int min(int a, int b) { return a < b ? a : b; }

namespace fibres {

constexpr size_t STACK = 64 * 1024;

struct Fibre;

struct Warp {
    float values[2][32];
    int come = 0, turn = 0;
    std::vector<Fibre*> waiting;
};

struct Block {
    dim3 index;
    std::vector<float4> shared;
    unsigned running = 0;
    std::vector<Fibre*> waiting;
};

struct Fibre {
    ucontext_t context;
    dim3 thread;
    Block* block;
    Warp* warp;
    uint64_t priority;
    const unsigned* polled = nullptr;  // the counter that was read last, with what came
    unsigned seen = 0;
};

using Ready = std::pair<uint64_t, Fibre*>;

inline std::function<void()> kernel;
inline dim3 grid, block;
inline std::priority_queue<Ready> ready;
inline Fibre* now;
inline ucontext_t home;
inline std::vector<Fibre*> watching;
inline unsigned left_to_run;
inline unsigned left_out;  // bit i: the i-th barrier of the source is not there
inline bool shuffled, faulted;
inline uint64_t state;

inline uint64_t draw() {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

inline void may_run(Fibre* fibre) { ready.push({fibre->priority, fibre}); }

// Runs whoever is ready and comes first. Nobody, while some are left: they wait for each other for ever.
inline void wait() {
    Fibre* before = now;
    if (ready.empty()) {
        swapcontext(&before->context, &home);
        return;
    }
    now = ready.top().second;
    ready.pop();
    if (now != before) swapcontext(&before->context, &now->context);
}

inline void wake(std::vector<Fibre*>& waiting) {
    for (Fibre* fibre : waiting) may_run(fibre);
    waiting.clear();
}

// Now and then, where fibres meet, the one that runs falls back.
inline void maybe_fall_back() {
    if (!shuffled || draw() % 16) return;
    now->priority = draw();
    may_run(now);
    wait();
}

inline void run_thread() {
    kernel();
    --left_to_run;
    Block* mine = now->block;
    if (--mine->running == mine->waiting.size()) wake(mine->waiting);
    wait();
}

// A thread has touched memory that is not its own: the launch is over.
inline void give_up(int) {
    faulted = true;
    setcontext(&home);
}

enum Outcome { DONE, WAITING_FOR_EVER, BEYOND_THE_END, NO_SUCH_KERNEL, OTHER_ARGUMENTS };

inline Outcome launch(dim3 blocks, unsigned threads, size_t shared_bytes, unsigned order, std::function<void()> call) {
    const unsigned count = blocks.x * blocks.y * threads;
    void* stacks = mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
    kernel = std::move(call);
    grid = blocks;
    block = {threads, 1};
    ready = {};
    watching.clear();
    left_to_run = count;
    shuffled = order > 1;
    state = order;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<Block> all(blocks.x * blocks.y);
    std::vector<Warp> warps(all.size() * ((threads + 31) / 32));
    std::vector<Fibre> fibres(count);
    for (unsigned i = 0; i < count; ++i) {
        Fibre& fibre = fibres[i];
        const unsigned b = i / threads, t = i % threads;
        fibre.block = &all[b];
        fibre.warp = &warps[b * ((threads + 31) / 32) + t / 32];
        fibre.thread = {t, 0};
        if (t == 0) {
            fibre.block->index = {b % blocks.x, b / blocks.x};
            fibre.block->shared.assign((shared_bytes + 15) / 16, float4{nan, nan, nan, nan});
            fibre.block->running = threads;
        }
        fibre.priority = order == 0 ? count - i : order == 1 ? i : draw();
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = static_cast<char*>(stacks) + i * STACK;
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, run_thread, 0);
        may_run(&fibre);
    }
    // A handler on a stack of its own, for the time of the launch.
    static char handlers_stack[64 * 1024];
    const stack_t ours{handlers_stack, 0, sizeof handlers_stack};
    stack_t former_stack;
    struct sigaction handler {}, former;
    handler.sa_handler = give_up;
    handler.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaltstack(&ours, &former_stack);
    sigaction(SIGSEGV, &handler, &former);
    faulted = false;
    now = ready.top().second;
    ready.pop();
    swapcontext(&home, &now->context);
    sigaction(SIGSEGV, &former, nullptr);
    sigaltstack(&former_stack, nullptr);
    munmap(stacks, count * STACK);
    return faulted ? BEYOND_THE_END : left_to_run == 0 ? DONE : WAITING_FOR_EVER;
}

}  // namespace fibres

#define threadIdx (fibres::now->thread)
#define blockIdx (fibres::now->block->index)
#define gridDim (fibres::grid)
#define blockDim (fibres::block)

inline void __syncthreads() {
    using namespace fibres;
    Block* mine = now->block;
    mine->waiting.push_back(now);
    if (mine->waiting.size() == mine->running) wake(mine->waiting);
    wait();
}

inline float __shfl_xor_sync(unsigned, float value, int bit) {
    using namespace fibres;
    Warp* mine = now->warp;
    const int lane = now->thread.x % 32, turn = mine->turn;
    mine->values[turn][lane] = value;
    mine->waiting.push_back(now);
    if (++mine->come == 32) {
        // The values of this turn stay until the next but one, which nobody reaches before all have read them.
        mine->come = 0;
        mine->turn = 1 - turn;
        wake(mine->waiting);
    }
    wait();
    return mine->values[turn][lane ^ bit];
}

template <class T>
T __ldg(const T* at) {
    return *at;
}

inline float* on_chip() { return reinterpret_cast<float*>(fibres::now->block->shared.data()); }

inline float4 load_from_others(const float4* at) {
    fibres::maybe_fall_back();
    return *at;
}

inline unsigned arrive(unsigned* counter, unsigned amount) {
    const unsigned before = *counter;
    *counter += amount;
    fibres::wake(fibres::watching);
    fibres::maybe_fall_back();
    return before;
}

// Who reads the same value again waits until somebody has arrived.
inline unsigned poll(const unsigned* counter) {
    using namespace fibres;
    Fibre* reader = now;
    while (reader->polled == counter && reader->seen == *counter) {
        watching.push_back(reader);
        wait();
    }
    reader->polled = counter;
    return reader->seen = *counter;
}
