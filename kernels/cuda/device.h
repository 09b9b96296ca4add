// What only the machine can do: its on-chip memory, and loads and atomics with a stated order.
//
// Everything else in this folder is plain CUDA C++. The tests put another file in this one's place, made of
// fibres, and so run the kernels on a CPU.

// The block's dynamic shared memory, on 16 bytes.
__device__ __forceinline__ float* on_chip() {
    extern __shared__ float4 on_chip_memory[];
    return reinterpret_cast<float*>(on_chip_memory);
}

// Loads what other blocks wrote during this launch: from L2, since no L1 follows what other SMs write.
// "memory" keeps the load behind the barrier that it needs; __ldcg promises no such thing.
__device__ __forceinline__ float4 load_from_others(const float4* at) {
    float4 value;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(at)
                 : "memory");
    return value;
}

// Adds to a counter; what this block wrote before is seen by whoever sees the sum. Returns the old value.
__device__ __forceinline__ unsigned arrive(unsigned* counter, unsigned amount) {
    unsigned before;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(amount)
                 : "memory");
    return before;
}

// Reads a counter; what the blocks that are counted in it wrote before is seen from here on.
__device__ __forceinline__ unsigned poll(const unsigned* counter) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}
