// A whole step in one launch, for few rows: the products with both weights, and the gates.
#include "device.h"

#include "cells.h"
#include "lanes.h"

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

// What `lstm_step`, `gru_step` and `rnn_step` of `cpu.py` compute, by their names and in their shapes; null is what a cell
// has none of: c and c_next are the LSTM's, b_h is the GRU's, gates and extra (tanh c', `inner`) are not Elman's.
//
// A block does UNITS units of ROWS rows, and reads those columns of the weights once; a thread takes four inputs and
// four units at a time, its sums stay in registers until the end. (⌈batch / ROWS⌉, ⌈n / UNITS⌉) blocks of 32 WARPS
// threads, WARPS ROWS SUMS UNITS floats of shared memory. n_in and n are multiples of 4; x, h and the weights lie on
// 16 bytes. Nothing that is written may be what is read: other blocks may not have read it yet.
template <class Cell, int UNITS, int ROWS, int WARPS>
__global__ void __launch_bounds__(32 * WARPS)
    forward_step(int batch, int n_in, int n, const float* x, const float* h, const float* c, const float* w_x,
                 const float* w_h, const float* b, const float* b_h, float* h_next, float* c_next, float* gates,
                 float* extra) {
    constexpr int QUADS = UNITS / 4, GROUPS = 32 * WARPS / QUADS, COUNT = ROWS * Cell::SUMS * 4;
    using Sums = LaneSums<COUNT, QUADS>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = threadIdx.x % QUADS;
    const int first_row = blockIdx.x * ROWS, first_unit = blockIdx.y * UNITS;
    // Units beyond the last and rows beyond the batch are read as the last ones; nobody takes their sums.
    const int units_at = min(first_unit + 4 * quad, n - 4);

    float sums[COUNT] = {};
    for (int i = threadIdx.x / QUADS; i < (n_in + n) / 4; i += GROUPS) {
        const bool of_x = i < n_in / 4;
        const int k = 4 * i - (of_x ? 0 : n_in);
        // All weights first: few rows are done as fast as these come.
        const float* weights = (of_x ? w_x : w_h) + static_cast<size_t>(k) * Cell::GATES * n + units_at;
        float4 w[Cell::GATES][4];
#pragma unroll
        for (int j = 0; j < 4 * Cell::GATES; ++j) {
            const float* at = weights + (j % 4 * Cell::GATES + j / 4) * n;
            w[j / 4][j % 4] = __ldg(reinterpret_cast<const float4*>(at));
        }
        const float* inputs = of_x ? x : h;
        const int width = of_x ? n_in : n;
        float4 in[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const size_t row = min(first_row + r, batch - 1);
            in[r] = __ldg(reinterpret_cast<const float4*>(inputs + row * width + k));
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
        const int r = item / UNITS, u = item % UNITS, row = first_row + r, unit = first_unit + u;
        if (row >= batch || unit >= n) continue;
        float z[Cell::SUMS], activated[Cell::GATES], kept;
#pragma unroll
        for (int sum = 0; sum < Cell::SUMS; ++sum) {
            z[sum] = Cell::bias(sum, b, b_h, n, unit);
#pragma unroll
            for (int w = 0; w < WARPS; ++w)
                z[sum] += parts[(w * COUNT + (r * Cell::SUMS + sum) * 4 + u % 4) * QUADS + u / 4];
        }
        const size_t at = static_cast<size_t>(row) * n + unit;
        float state = c ? c[at] : h[at];
        h_next[at] = Cell::finish(z, state, activated, kept);
        if (c_next) c_next[at] = state;
        if (gates) {
            float* of_unit = gates + static_cast<size_t>(row) * Cell::GATES * n + unit;
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate) of_unit[gate * n] = activated[gate];
            extra[at] = kept;
        }
    }
}
