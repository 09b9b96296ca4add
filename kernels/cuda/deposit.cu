// Steps that ops have run, into a ring; and what a ring holds, by age.
#include "device.h"
#include "ring.h"

// `rows` rows of `width` floats to rows `stride` floats apart, by all threads of the grid.
__device__ __forceinline__ void copy_rows(const float* from, int rows, int width, float* to, int stride) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * width; i += gridDim.x * blockDim.x)
        to[static_cast<size_t>(i / width) * stride + i % width] = from[i];
}

// What a step's op kept goes into the slot behind the newest, and the head moves there: x (batch, n_in); h, c and extra
// (batch, n); gates (batch, width); h_next (batch, n), which the slot behind begins with. Those that the cell has none of
// are null; `h_next` is Elman's alone. `ticket` is 0, and 0 again afterwards.
//
// The last block to come to the end moves the head: all others have read it by then.
extern "C" __global__ void deposit(int* head, int slots, int window, int batch, int n_in, int n, int width,
                                   const float* x, const float* h, const float* c, const float* gates,
                                   const float* extra, const float* h_next, float* inputs, int stride, float* cs,
                                   float* ring_gates, float* ring_extra, unsigned* ticket) {
    const Ring ring(head, slots);
    const int slot = ring.behind(ring.newest);
    const size_t at = row_of(slot, batch, 0);
    copy_rows(x, batch, n_in, inputs + at * stride, stride);
    copy_rows(h, batch, n, inputs + at * stride + n_in, stride);
    if (c) copy_rows(c, batch, n, cs + at * n, n);
    if (gates) copy_rows(gates, batch, width, ring_gates + at * width, width);
    if (extra) copy_rows(extra, batch, n, ring_extra + at * n, n);
    if (h_next) copy_rows(h_next, batch, n, inputs + row_of(ring.behind(slot), batch, 0) * stride + n_in, stride);
    __syncthreads();
    if (threadIdx.x == 0 && arrive(ticket, 1) == gridDim.x - 1) {
        *ticket = 0;
        head[0] = slot;
        head[1] = min(ring.steps + 1, window);
    }
}

// The newest steps of a ring (slots, size), newest first: ages (steps, size), of gridDim.y steps.
extern "C" __global__ void by_age(const int* head, int slots, int size, const float* ring, float* ages) {
    const size_t from = static_cast<size_t>(Ring(head, slots).of_age(blockIdx.y)) * size;
    const size_t to = static_cast<size_t>(blockIdx.y) * size;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) ages[to + i] = ring[from + i];
}
