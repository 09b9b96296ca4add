// Backpropagation through time over the window in a ring, in one launch or step by step.
#include "barrier.h"
#include "cells.h"
#include "lanes.h"

constexpr int min_of(int a, int b) { return a < b ? a : b; }

// How a block divides its work. `plan.py` computes the same sizes.
template <class Cell, int HIDDEN, int UNITS, int ROWS, int WARPS>
struct Shares {
    static constexpr int WIDTH = Cell::GATES * HIDDEN;  // of a unit's weights, and of a row of deltas
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int OWNED = ROWS * UNITS;  // adjoints that the block finishes, some for each thread
    static constexpr int EACH = (OWNED + THREADS - 1) / THREADS;
    // A warp multiplies HEIGHT rows of deltas by the weights of all units. 64 sums a lane keep the multipliers as
    // busy as the loads: 8 + 8 loads of 16 bytes for 256 products. More would not leave room for the rows to come.
    static constexpr int HEIGHT = min_of(min_of(ROWS, 8), UNITS < 64 ? 64 / UNITS : 1);
    static constexpr int TILES = ROWS / HEIGHT;
    // With fewer tiles than warps, several warps add up different parts of a tile's sums.
    static constexpr int SPLITS = TILES < WARPS ? WARPS / TILES : 1;
    static constexpr int AHEAD = HEIGHT < 4 ? 4 : 2;  // loads from L2 that are on their way at once, in rows

    static_assert(HIDDEN % 4 == 0, "rows are read 16 bytes at a time");
    static_assert(TILES * HEIGHT == ROWS && (WARPS % SPLITS) == 0, "powers of two");
};

// deltas w_hᵀ for the block's rows and units, in SPLITS parts. Shapes: deltas (batch, WIDTH) -> parts (SPLITS, OWNED).
template <class Share, int UNITS, int WARPS>
__device__ __forceinline__ void product(const float* deltas, const float4* weights, float* parts, int first_row,
                                        int batch) {
    constexpr int QUADS = Share::WIDTH / 4, HEIGHT = Share::HEIGHT, SPLITS = Share::SPLITS;
    using Sums = LaneSums<HEIGHT * UNITS>;
    const int lane = threadIdx.x % 32, split = threadIdx.x / 32 % SPLITS;
    for (int tile = threadIdx.x / 32 / SPLITS; tile < Share::TILES; tile += WARPS / SPLITS) {
        const float4* rows[HEIGHT];
#pragma unroll
        for (int r = 0; r < HEIGHT; ++r) {
            // Rows beyond the batch are read as its last one; nobody takes their sums.
            const int row = min(first_row + tile * HEIGHT + r, batch - 1);
            rows[r] = reinterpret_cast<const float4*>(deltas) + static_cast<size_t>(row) * QUADS;
        }
        float sums[HEIGHT * UNITS] = {};
#pragma unroll Share::AHEAD
        for (int j = 32 * split + lane; j < QUADS; j += 32 * SPLITS) {
            float4 delta[HEIGHT];
#pragma unroll
            for (int r = 0; r < HEIGHT; ++r) delta[r] = load_from_others(rows[r] + j);
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                const float4 w = weights[u * QUADS + j];
#pragma unroll
                for (int r = 0; r < HEIGHT; ++r) {
                    float& sum = sums[r * UNITS + u];
                    sum += delta[r].x * w.x;
                    sum += delta[r].y * w.y;
                    sum += delta[r].z * w.z;
                    sum += delta[r].w * w.w;
                }
            }
        }
        Sums::add(sums, lane);
        if (Sums::owner(lane)) {
            float* part = parts + split * Share::OWNED + tile * HEIGHT * UNITS + Sums::first(lane);
#pragma unroll
            for (int i = 0; i < Sums::LEFT; ++i) part[i] = sums[i];
        }
    }
}

// Writes a unit's deltas to a slot: those of h w_h, and those of x w_x where they differ.
template <class Cell>
__device__ __forceinline__ void store(const float (&of_x)[Cell::GATES], const float (&of_h)[Cell::GATES], size_t at,
                                      int n, int unit, float* deltas_x, float* deltas) {
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate) {
        deltas[(at * Cell::GATES + gate) * n + unit] = of_h[gate];
        if (Cell::TWO_DELTAS) deltas_x[(at * Cell::GATES + gate) * n + unit] = of_x[gate];
    }
}

// A unit's deltas in slots that have no step are zero.
template <class Cell>
__device__ __forceinline__ void clear_free_slots(const Ring& ring, int batch, int row, int n, int unit,
                                                 float* deltas_x, float* deltas) {
    const float zeros[Cell::GATES] = {};
    for (int age = ring.steps; age < ring.slots; ++age)
        store<Cell>(zeros, zeros, row_of(ring.of_age(age), batch, row), n, unit, deltas_x, deltas);
}

// The cotangents of h from outside, of the `ages` newest steps: values (ages, batch, n), the newest step's first.
struct Seeds {
    const float* values;
    int ages;

    __device__ __forceinline__ float of(int age, int batch, int row, int n, int unit) const {
        return age < ages ? values[row_of(age, batch, row) * n + unit] : 0.0f;
    }
};

// The whole window in one launch, newest step first. A block owns UNITS units of ROWS rows: it keeps those units'
// weights on chip for the whole launch, and their adjoints in registers from step to step.
//
// Blocks of one blockIdx.y have the same rows; they alone wait for each other, once a step, since rows do not mix.
// The weights are today's: the launch is for windows that are swept with them, whatever a step was recorded with.
// Cooperative launch, (⌈HIDDEN / UNITS⌉, ⌈batch / ROWS⌉) blocks of 32 WARPS threads, (UNITS WIDTH + SPLITS OWNED)
// floats of shared memory. passed_h, passed_c (steps, batch, n) get the cotangents of the state that each step began
// with, the newest step's first, before the joint's factor. Pointers that may be null: joints (slots,), factors of what
// passes from a slot's step to the older one; and what a cell has none of: gates, extra, deltas_x, passed_c.
template <class Cell, int HIDDEN, int UNITS, int ROWS, int WARPS>
__global__ void __launch_bounds__(32 * WARPS, 1)
    persistent_backward(const int* head, int slots, int batch, const float* w_h, const float* seeds, int ages,
                        const float* joints, const float* before, int stride, const float* gates, const float* extra,
                        float* deltas_x, float* deltas, float* passed_h, float* passed_c, unsigned* counters) {
    using Share = Shares<Cell, HIDDEN, UNITS, ROWS, WARPS>;
    constexpr int WIDTH = Share::WIDTH, OWNED = Share::OWNED, EACH = Share::EACH;
    float4* weights = reinterpret_cast<float4*>(on_chip());
    float* parts = on_chip() + UNITS * WIDTH;
    const int first_unit = blockIdx.x * UNITS, first_row = blockIdx.y * ROWS;
    const Ring ring(head, slots);
    const Rings rings{before, stride, gates, extra};
    const Seeds from_outside{seeds, ages};
    // A counter for each group of rows, 128 bytes from the next, so that they lie in different lines.
    BlocksBarrier barrier(counters + 32 * blockIdx.y, gridDim.x, blockIdx.x);

    // The first barrier lies between this and the first use.
    const float4* from = reinterpret_cast<const float4*>(w_h) + static_cast<size_t>(first_unit) * (WIDTH / 4);
#pragma unroll 8
    for (int i = threadIdx.x; i < UNITS * WIDTH / 4; i += Share::THREADS)
        weights[i] = first_unit + i / (WIDTH / 4) < HIDDEN ? from[i] : float4{0.0f, 0.0f, 0.0f, 0.0f};

    int row[EACH], unit[EACH];
    bool live[EACH];
    Carry carry[EACH];
    typename Cell::Kept kept[EACH] = {};
    float seed[EACH] = {}, ct_h[EACH] = {};
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int owned = threadIdx.x + e * Share::THREADS;
        row[e] = first_row + owned / UNITS;
        unit[e] = first_unit + owned % UNITS;
        live[e] = owned < OWNED && row[e] < batch && unit[e] < HIDDEN && ring.steps > 0;
        if (!live[e]) continue;
        clear_free_slots<Cell>(ring, batch, row[e], HIDDEN, unit[e], deltas_x, deltas);
        kept[e] = Cell::kept(rings, ring, ring.newest, batch, row[e], HIDDEN, unit[e]);
        seed[e] = from_outside.of(0, batch, row[e], HIDDEN, unit[e]);
    }

    for (int age = 0; age < ring.steps; ++age) {
        const int slot = ring.of_age(age);
        const float factor = joints ? joints[slot] : 1.0f;
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            if (!live[e]) continue;
            float of_x[Cell::GATES], of_h[Cell::GATES];
            Cell::adjoint(kept[e], ct_h[e] + seed[e], carry[e], of_x, of_h);
            store<Cell>(of_x, of_h, row_of(slot, batch, row[e]), HIDDEN, unit[e], deltas_x, deltas);
        }
        barrier.come();
        // What the next step needs is on its way while the blocks wait for each other, and while they multiply.
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            if (!live[e] || age + 1 == ring.steps) continue;
            kept[e] = Cell::kept(rings, ring, ring.of_age(age + 1), batch, row[e], HIDDEN, unit[e]);
            seed[e] = from_outside.of(age + 1, batch, row[e], HIDDEN, unit[e]);
        }
        barrier.wait();
        product<Share, UNITS, WARPS>(deltas + row_of(slot, batch, 0) * WIDTH, weights, parts, first_row, batch);
        __syncthreads();
        // The next step's barrier lies between this and the next product, which writes `parts` again.
        const float passed = age + 1 < ring.steps ? factor : 1.0f;  // the window's left edge is no joint
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            if (!live[e]) continue;
            float sum = carry[e].ct_h;
#pragma unroll
            for (int split = 0; split < Share::SPLITS; ++split)
                sum += parts[split * OWNED + threadIdx.x + e * Share::THREADS];
            const size_t at = row_of(age, batch, row[e]) * HIDDEN + unit[e];
            passed_h[at] = sum;
            if (passed_c) passed_c[at] = carry[e].ct_c;
            ct_h[e] = sum * passed;
            carry[e].ct_c *= passed;
        }
    }
}

// One step of the same, for windows whose product is somebody else's GEMM: a launch for each age, from 0 to the
// window's first step, and after each the product deltas_now w_hᵀ of `deltas_now` (batch, GATES n).
//
// What arrives from the younger step is from_h + from_product and from_c (batch, n); each may be null, which is
// nothing. ct_h and ct_c get what goes on to the older one, `ct_h` without the product; each may be null where that is
// nothing: ct_h but for a GRU, ct_c but for an LSTM. They may be the same as from_h and from_c. A thread for each of
// batch n elements; the other arguments are those of `persistent_backward`.
template <class Cell>
__global__ void step_backward(const int* head, int slots, int age, int batch, int n, const float* seeds, int ages,
                              const float* joints, const float* before, int stride, const float* gates,
                              const float* extra, const float* from_h, const float* from_product,
                              const float* from_c, float* deltas_x, float* deltas, float* ct_h, float* ct_c,
                              float* deltas_now) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, row = at / n, unit = at % n;
    if (row >= batch) return;
    const Ring ring(head, slots);
    if (age == 0) clear_free_slots<Cell>(ring, batch, row, n, unit, deltas_x, deltas);
    const int slot = ring.of_age(age);
    const float factor = age > 0 && joints ? joints[ring.of_age(age - 1)] : 1.0f;
    const float arriving = (from_h ? from_h[at] : 0.0f) + (from_product ? from_product[at] : 0.0f);
    const float ct = factor * arriving + Seeds{seeds, ages}.of(age, batch, row, n, unit);
    Carry carry;
    carry.ct_c = from_c ? factor * from_c[at] : 0.0f;
    float of_x[Cell::GATES], of_h[Cell::GATES];
    Cell::adjoint(Cell::kept({before, stride, gates, extra}, ring, slot, batch, row, n, unit), ct, carry, of_x, of_h);
    store<Cell>(of_x, of_h, row_of(slot, batch, row), n, unit, deltas_x, deltas);
    if (ct_h) ct_h[at] = carry.ct_h;
    if (ct_c) ct_c[at] = carry.ct_c;
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate)
        deltas_now[(static_cast<size_t>(row) * Cell::GATES + gate) * n + unit] = of_h[gate];
}
