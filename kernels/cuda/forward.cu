// One step forward into the ring: with its products, for few rows; or after somebody else's GEMM.
#include "device.h"

#include "cells.h"
#include "lanes.h"

// The ring's head moves on. Launched alone, before the step that fills the slot: nobody reads the head meanwhile.
// Cotangents of `stride` steps wait for a sweep at most, then it is done, and the count begins again.
extern "C" __global__ void advance_head(int* head, int slots, int window, int stride) {
    head[0] = head[0] + 1 < slots ? head[0] + 1 : 0;
    head[1] = min(head[1] + 1, window);
    head[2] = head[2] % stride + 1;
}

// What a step writes. Rows of x and h are `x_stride` and `h_stride` floats apart, so that they may lie side by side
// in one array, as [x, h, 1]: the bias's gradient is then part of the weights' product.
struct Step {
    float* xs;
    int x_stride;
    float* hs;
    int h_stride;
    float* cs;     // (slots, batch, n); null for all cells but the LSTM
    float* gates;  // (slots, batch, GATES n); null for Elman's network
    float* extra;  // (slots, batch, n); null for Elman's network
    float* h_now;  // (batch, n): the new h once more, at a fixed place; may be null
};

// Finishes a unit whose products are done, and writes what it keeps and its new state.
template <class Cell>
__device__ __forceinline__ void finish(const float (&z)[Cell::SUMS], const Step& step, const Ring& ring, int batch,
                                       int row, int n, int unit) {
    const size_t at = row_of(ring.newest, batch, row), next = row_of(ring.behind(ring.newest), batch, row);
    float gates[Cell::GATES], extra;
    float state = step.cs ? step.cs[at * n + unit] : step.hs[at * step.h_stride + unit];
    const float h = Cell::finish(z, state, gates, extra);
    if (step.cs) step.cs[next * n + unit] = state;
    step.hs[next * step.h_stride + unit] = h;
    if (step.gates) {
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate) step.gates[(at * Cell::GATES + gate) * n + unit] = gates[gate];
        step.extra[at * n + unit] = extra;
    }
    if (step.h_now) step.h_now[row * n + unit] = h;
}

// sums += inᵀ w for one row of inputs and four units: SUM says which of the unit's sums.
template <int SUM, int SUMS, int ROWS>
__device__ __forceinline__ void add_products(float (&sums)[ROWS * SUMS * 4], const float4 (&in)[ROWS],
                                             const float4 (&w)[4]) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float* sum = sums + (r * SUMS + SUM) * 4;
        const float input[4] = {in[r].x, in[r].y, in[r].z, in[r].w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            sum[0] += input[k] * w[k].x;
            sum[1] += input[k] * w[k].y;
            sum[2] += input[k] * w[k].z;
            sum[3] += input[k] * w[k].w;
        }
    }
}

// The products of one gate's weights with the inputs, and so on to the last gate.
template <class Cell, int GATE, int ROWS>
__device__ __forceinline__ void add_gates(float (&sums)[ROWS * Cell::SUMS * 4], const float4 (&in)[ROWS],
                                          const float4 (&w)[Cell::GATES][4], bool of_x) {
    if constexpr (GATE < Cell::GATES) {
        if (Cell::sum_of_h(GATE) == GATE || of_x)
            add_products<GATE, Cell::SUMS, ROWS>(sums, in, w[GATE]);
        else
            add_products<Cell::sum_of_h(GATE), Cell::SUMS, ROWS>(sums, in, w[GATE]);
        add_gates<Cell, GATE + 1, ROWS>(sums, in, w, of_x);
    }
}

// A whole step: x w_x, h w_h, and the gates. A block does UNITS units of ROWS rows, and reads those columns of the
// weights once; a thread takes four inputs and four units at a time, its sums stay in registers until the end.
//
// (⌈n / UNITS⌉, ⌈batch / ROWS⌉) blocks of 32 WARPS threads, WARPS ROWS SUMS UNITS floats of shared memory. n_in, n
// and the strides are multiples of 4. x (batch, n_in) is copied to its slot; `b_h` is the GRU's alone.
template <class Cell, int UNITS, int ROWS, int WARPS>
__global__ void __launch_bounds__(32 * WARPS)
    forward_step(const int* head, int slots, int batch, int n_in, int n, const float* x, const float* w_x,
                 const float* w_h, const float* b, const float* b_h, float* xs, int x_stride, float* hs, int h_stride,
                 float* cs, float* gates, float* extra, float* h_now) {
    constexpr int QUADS = UNITS / 4, GROUPS = 32 * WARPS / QUADS, COUNT = ROWS * Cell::SUMS * 4;
    using Sums = LaneSums<COUNT, QUADS>;
    const Ring ring(head, slots);
    const Step step{xs, x_stride, hs, h_stride, cs, gates, extra, h_now};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = threadIdx.x % QUADS;
    const int first_unit = blockIdx.x * UNITS, first_row = blockIdx.y * ROWS;
    // Units beyond the last and rows beyond the batch are read as the last ones; nobody takes their sums.
    const int units_at = min(first_unit + 4 * quad, n - 4);
    const float* h = hs + row_of(ring.newest, batch, 0) * h_stride;

    float sums[COUNT] = {};
    for (int i = threadIdx.x / QUADS; i < (n_in + n) / 4; i += GROUPS) {
        const bool of_x = i < n_in / 4;
        const int k = 4 * i - (of_x ? 0 : n_in);
        // All weights first: few rows are done as fast as these come.
        const float* weights = (of_x ? w_x : w_h) + static_cast<size_t>(k) * Cell::GATES * n + units_at;
        float4 w[Cell::GATES][4];
#pragma unroll
        for (int i = 0; i < 4 * Cell::GATES; ++i) {
            const float* at = weights + (i % 4 * Cell::GATES + i / 4) * n;
            w[i / 4][i % 4] = __ldg(reinterpret_cast<const float4*>(at));
        }
        float4 in[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = min(first_row + r, batch - 1);
            in[r] = *reinterpret_cast<const float4*>(of_x ? x + row * n_in + k : h + row * h_stride + k);
        }
        add_gates<Cell, 0, ROWS>(sums, in, w, of_x);
    }
    Sums::add(sums, lane);
    float* parts = on_chip();  // (WARPS, COUNT, QUADS)
    if (Sums::owner(lane)) {
#pragma unroll
        for (int s = 0; s < Sums::LEFT; ++s) parts[(warp * COUNT + Sums::first(lane) + s) * QUADS + quad] = sums[s];
    }
    __syncthreads();

    for (int item = threadIdx.x; item < ROWS * UNITS; item += 32 * WARPS) {
        const int r = item / UNITS, u = item % UNITS;
        if (first_row + r >= batch || first_unit + u >= n) continue;
        float z[Cell::SUMS];
#pragma unroll
        for (int sum = 0; sum < Cell::SUMS; ++sum) {
            z[sum] = Cell::bias(sum, b, b_h, n, first_unit + u);
#pragma unroll
            for (int w = 0; w < WARPS; ++w)
                z[sum] += parts[(w * COUNT + (r * Cell::SUMS + sum) * 4 + u % 4) * QUADS + u / 4];
        }
        finish<Cell>(z, step, ring, batch, first_row + r, n, first_unit + u);
    }
    const float* rows = x + first_row * n_in;
    const int copied = min(ROWS, batch - first_row) * n_in;
    for (int i = blockIdx.x * 32 * WARPS + threadIdx.x; i < copied; i += gridDim.x * 32 * WARPS)
        xs[row_of(ring.newest, batch, first_row + i / n_in) * x_stride + i % n_in] = rows[i];
}

// A step after its products from_x = x w_x and from_h = h w_h (batch, GATES n), which may be one: from_x then has
// both, from_h is null (not for the GRU, which needs them apart). A thread for each of batch max(n, n_in) elements.
template <class Cell>
__global__ void finish_step(const int* head, int slots, int batch, int n_in, int n, const float* x,
                            const float* from_x, const float* from_h, const float* b, const float* b_h, float* xs,
                            int x_stride, float* hs, int h_stride, float* cs, float* gates, float* extra,
                            float* h_now) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const Ring ring(head, slots);
    if (at < batch * n_in) xs[row_of(ring.newest, batch, at / n_in) * x_stride + at % n_in] = x[at];
    const int row = at / n, unit = at % n;
    if (row >= batch) return;
    float z[Cell::SUMS];
#pragma unroll
    for (int sum = 0; sum < Cell::SUMS; ++sum) z[sum] = Cell::bias(sum, b, b_h, n, unit);
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate) {
        const size_t column = (static_cast<size_t>(row) * Cell::GATES + gate) * n + unit;
        z[gate] += from_x[column];
        if (from_h) z[Cell::sum_of_h(gate)] += from_h[column];
    }
    finish<Cell>(z, {xs, x_stride, hs, h_stride, cs, gates, extra, h_now}, ring, batch, row, n, unit);
}
