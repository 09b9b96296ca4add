// Where the steps of a window lie: slots of a ring, whose head is in device memory.
//
// Slot s has what step s began with and what its pullback needs, in arrays (slots, batch, ...). The state that
// step s ended with is the one that the slot behind it begins with. So the ring has at least one slot more than
// the window has steps, and the deltas of a slot without a step are zero: then one product over the whole ring is
// the weights' gradient, wherever the ring's head is.
//
// The head is read from memory by every launch, and no argument depends on it: a captured graph serves every step.

struct Ring {
    int newest;  // slot of the last step that ran
    int steps;   // how many steps the window has so far
    int slots;

    __device__ __forceinline__ Ring(const int* head, int slots)
        : newest(head[0]), steps(head[1]), slots(slots) {}

    // The slot of the step that ran `age` steps before the last one.
    __device__ __forceinline__ int of_age(int age) const {
        return newest < age ? newest - age + slots : newest - age;
    }
    __device__ __forceinline__ int behind(int slot) const { return slot + 1 == slots ? 0 : slot + 1; }
};

// A row of an array (slots, batch, ...), for 64-bit offsets: a ring may have more than 2^31 elements.
__device__ __forceinline__ size_t row_of(int slot, int batch, int row) {
    return static_cast<size_t>(slot) * batch + row;
}
