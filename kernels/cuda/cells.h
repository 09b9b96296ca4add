// What one unit of an LSTM, a GRU and Elman's network computes, and its adjoint. Shapes are those of the
// Python kernels: columns of weights are gate by gate; see `reference.py` and `cpu.py`.
#include "ring.h"

// What a step keeps: `before` is the ring of what it began with, rows `stride` floats apart.
struct Rings {
    const float* before;  // an LSTM's c; h of the others
    int stride;
    const float* gates;  // after their activation (slots, batch, GATES n); not for Elman's network
    const float* extra;  // an LSTM's tanh c'; the part of a GRU's h w_h + b_h that r multiplies (slots, batch, n)
};

// The adjoint of what a unit hands to the step before, besides what goes through the product with w_h.
struct Carry {
    float ct_c = 0.0f;
    float ct_h = 0.0f;
};

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

struct Lstm {
    static constexpr int GATES = 4;  // i, f, g, o
    static constexpr int SUMS = 4;   // sums of products that a unit needs: one for each gate
    static constexpr bool TWO_DELTAS = false;

    struct Kept {
        float i, f, g, o, c, tanh_c;
    };

    __device__ __forceinline__ static Kept kept(const Rings& rings, const Ring&, int slot, int batch, int row, int n,
                                                int unit) {
        const size_t at = row_of(slot, batch, row);
        const float* gate = rings.gates + at * GATES * n + unit;
        return {gate[0],     gate[n], gate[2 * n], gate[3 * n], rings.before[at * rings.stride + unit],
                rings.extra[at * n + unit]};
    }

    __device__ __forceinline__ static void adjoint(const Kept& kept, float ct_h, Carry& carry, float (&)[GATES],
                                                   float (&ct_z)[GATES]) {
        const float ct_c = carry.ct_c + ct_h * (kept.o - kept.o * (kept.tanh_c * kept.tanh_c));
        ct_z[0] = ct_c * (kept.g * (kept.i - kept.i * kept.i));
        ct_z[1] = ct_c * (kept.c * (kept.f - kept.f * kept.f));
        ct_z[2] = ct_c * (kept.i - kept.i * (kept.g * kept.g));
        ct_z[3] = ct_h * (kept.tanh_c * (kept.o - kept.o * kept.o));
        carry.ct_c = ct_c * kept.f;
    }

    // Which sum a gate's products with h belong to; those with x belong to the gate's own.
    __device__ __forceinline__ static constexpr int sum_of_h(int gate) { return gate; }

    __device__ __forceinline__ static float bias(int sum, const float* b, const float*, int n, int unit) {
        return b[sum * n + unit];
    }

    // The end of a step: gates, tanh c', and the new h; `before` is c and becomes c'.
    __device__ __forceinline__ static float finish(const float (&z)[SUMS], float& before, float (&gates)[GATES],
                                                   float& extra) {
        gates[0] = sigmoid(z[0]);
        gates[1] = sigmoid(z[1]);
        gates[2] = tanhf(z[2]);
        gates[3] = sigmoid(z[3]);
        before = gates[1] * before + gates[0] * gates[2];
        extra = tanhf(before);
        return gates[3] * extra;
    }
};

struct Gru {
    static constexpr int GATES = 3;  // r, z, n
    static constexpr int SUMS = 4;   // r and z of x and h together; n of x; n of h, which r multiplies
    static constexpr bool TWO_DELTAS = true;

    struct Kept {
        float r, z, n, h, inner;
    };

    __device__ __forceinline__ static Kept kept(const Rings& rings, const Ring&, int slot, int batch, int row, int n,
                                                int unit) {
        const size_t at = row_of(slot, batch, row);
        const float* gate = rings.gates + at * GATES * n + unit;
        return {gate[0], gate[n], gate[2 * n], rings.before[at * rings.stride + unit], rings.extra[at * n + unit]};
    }

    __device__ __forceinline__ static void adjoint(const Kept& kept, float ct, Carry& carry, float (&ct_x)[GATES],
                                                   float (&ct_h)[GATES]) {
        const float through_z = ct * kept.z;
        const float ct_n = (ct - through_z) * (1.0f - kept.n * kept.n);
        ct_x[0] = ct_n * (kept.inner * (kept.r - kept.r * kept.r));
        ct_x[1] = ct * ((kept.h - kept.n) * (kept.z - kept.z * kept.z));
        ct_x[2] = ct_n;
        ct_h[0] = ct_x[0];
        ct_h[1] = ct_x[1];
        ct_h[2] = ct_n * kept.r;
        carry.ct_h = through_z;
    }

    __device__ __forceinline__ static constexpr int sum_of_h(int gate) { return gate == 2 ? 3 : gate; }

    __device__ __forceinline__ static float bias(int sum, const float* b, const float* b_h, int n, int unit) {
        if (sum == 3) return b_h[2 * n + unit];
        return b[sum * n + unit] + (sum == 2 ? 0.0f : b_h[sum * n + unit]);
    }

    __device__ __forceinline__ static float finish(const float (&z)[SUMS], float& before, float (&gates)[GATES],
                                                   float& extra) {
        gates[0] = sigmoid(z[0]);
        gates[1] = sigmoid(z[1]);
        gates[2] = tanhf(z[2] + gates[0] * z[3]);
        extra = z[3];
        before = gates[2] + gates[1] * (before - gates[2]);
        return before;
    }
};

struct Rnn {
    static constexpr int GATES = 1;
    static constexpr int SUMS = 1;
    static constexpr bool TWO_DELTAS = false;

    struct Kept {
        float y;
    };

    // The step's own h' is what the slot behind it began with.
    __device__ __forceinline__ static Kept kept(const Rings& rings, const Ring& ring, int slot, int batch, int row,
                                                int, int unit) {
        return {rings.before[row_of(ring.behind(slot), batch, row) * rings.stride + unit]};
    }

    __device__ __forceinline__ static void adjoint(const Kept& kept, float ct, Carry&, float (&)[GATES],
                                                   float (&ct_z)[GATES]) {
        ct_z[0] = ct - ct * (kept.y * kept.y);
    }

    __device__ __forceinline__ static constexpr int sum_of_h(int gate) { return gate; }

    __device__ __forceinline__ static float bias(int, const float* b, const float*, int, int unit) { return b[unit]; }

    __device__ __forceinline__ static float finish(const float (&z)[SUMS], float& before, float (&)[GATES], float&) {
        before = tanhf(z[0]);
        return before;
    }
};
