// Memory by age: what was made in a step lies in a place of its own, and moves to an older place at the next step.
#include "device.h"

// 16 bytes, as memory hands them out.
struct alignas(16) Quad {
    unsigned a, b, c, d;
};

// place[a + by] = place[a] for the newest `places` places, the oldest first. A thread has one column of quads: no
// other reads or writes it, so the places may overlap. Several are read before any is written, for each takes long.
extern "C" __global__ void move_ages(Quad* memory, unsigned long long quads, int places, int by) {
    constexpr int TOGETHER = 8;
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= quads) return;
    for (int end = places; end > 0; end -= TOGETHER) {
        Quad held[TOGETHER];
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k)
            if (end - 1 - k >= 0) held[k] = memory[(end - 1 - k) * quads + at];
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k)
            if (end - 1 - k >= 0) memory[(end - 1 - k + by) * quads + at] = held[k];
    }
}
