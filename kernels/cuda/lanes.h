// Sums over the lanes of a warp.

constexpr unsigned ALL_LANES = 0xffffffffu;

// Adds up each of COUNT values over the lanes that differ in the bits from LOWEST to 16 of their number.
//
// At each bit a lane hands one half of its values to its partner and keeps the sums of the other half: COUNT values
// take COUNT - 1 shuffles, not 5 each. In the end a lane has values[0] to values[LEFT - 1], which are those from
// `first` on; `owner` is false where another lane has the same ones.
template <int COUNT, int LOWEST = 1>
struct LaneSums {
    static_assert((COUNT & (COUNT - 1)) == 0, "halves of halves");
    static constexpr int LANES = 32 / LOWEST;
    static constexpr int LEFT = COUNT > LANES ? COUNT / LANES : 1;
    static constexpr int SHARERS = COUNT > LANES ? 1 : LANES / COUNT;

    __device__ __forceinline__ static int first(int lane) { return lane / LOWEST / SHARERS * LEFT; }
    __device__ __forceinline__ static bool owner(int lane) { return lane / LOWEST % SHARERS == 0; }

    template <int BIT = 16, int HELD = COUNT>
    __device__ __forceinline__ static void add(float (&values)[COUNT], int lane) {
        if constexpr (BIT >= LOWEST) {
            constexpr int KEPT = HELD > 1 ? HELD / 2 : 1;
            const bool upper = HELD > 1 && (lane & BIT) != 0;
#pragma unroll
            for (int i = 0; i < KEPT; ++i) {
                const float kept = upper ? values[(KEPT + i) % HELD] : values[i];
                const float given = upper ? values[i] : values[(KEPT + i) % HELD];
                values[i] = kept + __shfl_xor_sync(ALL_LANES, given, BIT);
            }
            add<BIT / 2, KEPT>(values, lane);
        }
    }
};
