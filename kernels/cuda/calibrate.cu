// Kernels that do one thing, to be timed: the constants of `costs.py` come from them.
#include "barrier.h"

// Sums over threads are of no interest, but have to be there, or the compiler leaves out what made them.
constexpr int CHAINS = 8;  // that a thread has under way at once

// Nothing, with arguments of a usual number.
extern "C" __global__ void nothing(const float*, const float*, const float*, float*) {}

// Barriers of all blocks. Before the last one a block's last thread says that it comes, and behind it looks for the
// next block's word: `seen` (blocks,) is `turns` everywhere if nobody passed early. `words` (blocks, 4). Cooperative
// launch.
extern "C" __global__ void only_barriers(int turns, unsigned* counter, float* words, float* seen) {
    BlocksBarrier barrier(counter, gridDim.x, blockIdx.x);
    float4* word = reinterpret_cast<float4*>(words);
    const bool speaks = threadIdx.x == blockDim.x - 1;
    const float last = static_cast<float>(turns);
    for (int turn = 1; turn <= turns; ++turn) {
        if (turn == turns && speaks) word[blockIdx.x] = float4{last, last, last, last};
        barrier.come();
        barrier.wait();
    }
    if (speaks) seen[blockIdx.x] = load_from_others(word + (blockIdx.x + 1) % gridDim.x).x;
}

// Each block reads `quads` times 16 bytes from L2, `turns` times over. All read the same, as they do a row's deltas.
// `sums` (blocks, threads). `quads` is a multiple of CHAINS times the threads.
extern "C" __global__ void read_l2(const float* from, int quads, int turns, float* sums) {
    const float4* at = reinterpret_cast<const float4*>(from);
    float sum = 0.0f;
    for (int turn = 0; turn < turns; ++turn) {
        for (int i = threadIdx.x; i < quads; i += CHAINS * blockDim.x) {
            float4 come[CHAINS];
#pragma unroll
            for (int c = 0; c < CHAINS; ++c) come[c] = load_from_others(at + i + c * blockDim.x);
#pragma unroll
            for (int c = 0; c < CHAINS; ++c) sum += come[c].x + come[c].y + come[c].z + come[c].w;
        }
    }
    sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// One load from L2 after the other, each from where the one before says. `next` (count, 4): the first of four is a
// number. One thread.
extern "C" __global__ void follow(const float* next, int steps, float* end) {
    const float4* at = reinterpret_cast<const float4*>(next);
    int here = 0;
    for (int step = 0; step < steps; ++step) here = static_cast<int>(load_from_others(at + here).x);
    end[0] = static_cast<float>(here);
}

// CHAINS multiplications and additions a thread and turn, none of which waits for another of its turn.
extern "C" __global__ void multiply_add(int turns, float factor, float* sums) {
    float sum[CHAINS];
#pragma unroll
    for (int c = 0; c < CHAINS; ++c) sum[c] = static_cast<float>(c);
#pragma unroll 8
    for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
        for (int c = 0; c < CHAINS; ++c) sum[c] = sum[c] * factor + 1.0f;
    }
    float total = 0.0f;
#pragma unroll
    for (int c = 0; c < CHAINS; ++c) total += sum[c];
    sums[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
