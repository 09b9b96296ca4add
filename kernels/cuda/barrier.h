// A barrier of blocks: none passes before all have come. Needs a cooperative launch, which has them all on the
// GPU at once.
#include "device.h"

// In two halves: what a block reads between them, from before the barrier, comes while it waits for the others.
//
// One counter serves every barrier of every launch, and starts as 0. Block 0 adds 2^31 - (blocks - 1), the others
// 1 each: together 2^31. So the top bit flips when the last has come, and the rest is 0 again for the next time.
struct BlocksBarrier {
    static constexpr unsigned TOP_BIT = 1u << 31;

    unsigned* counter;
    unsigned amount;
    unsigned before = 0;

    __device__ __forceinline__ BlocksBarrier(unsigned* counter, unsigned blocks, unsigned block)
        : counter(counter), amount(block == 0 ? TOP_BIT - (blocks - 1) : 1u) {}

    // What the block has written is there for the others once they have waited.
    __device__ __forceinline__ void come() {
        __syncthreads();  // thread 0 speaks for all of the block's writes
        if (threadIdx.x == 0) before = arrive(counter, amount);
    }

    __device__ __forceinline__ void wait() {
        if (threadIdx.x == 0) {
            while (((poll(counter) ^ before) & TOP_BIT) == 0) {
            }
        }
        __syncthreads();
    }
};
