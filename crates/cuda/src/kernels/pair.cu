// A low-rank layer: a convolution with few filters and a 1x1 convolution of its result, which stays in shared memory.

struct Pair {
    Conv conv;            // of the basis; what is written, added and rectified is the combination's
    const float* second;  // combination: of each tile of 64 outputs, for each of the `depth` basis filters, its outputs
    int outputs;
    int depth;  // basis filters, up to a multiple of a tile
};
static_assert(sizeof(Pair) == 152, "as the host has it");

// A block has BN pixels. Shared memory: what the products need, then the basis' result [depth, BN].
template <int BN, int TN>
DEVICE void both(const Pair& q) {
    constexpr int BM = 64, BK = 16, TM = 4;
    using Of = Tile<BM, BN, BK, TM, TN>;
    SHARED(float, shared);
    float* middle = shared + 2 * BK * (BM + BN);
    const Conv& p = q.conv;
    const int m = threadIdx.x / Of::ACROSS, n = threadIdx.x % Of::ACROSS;
    const Window w = window(p, blockIdx.x * BN + threadIdx.x % BN, 0);
    for (int tile = 0; tile < p.tiles; ++tile) {
        const int* span = p.spans + 3 * tile;
        float acc[TM][TN] = {};
        Of::template product<false>(acc, shared, p, w, static_cast<const float*>(p.weights) + span[2], p.table + span[0], span[1] / BK);
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) middle[(tile * BM + place<TM, BM>(m, i)) * BN + place<TN, BN>(n, j)] = acc[i][j];
    }
    const int tiles = (q.outputs + BM - 1) / BM, steps = q.depth / BK;
    for (int tile = 0; tile < tiles; ++tile) {
        const float* weights = q.second + tile * q.depth * BM;
        float acc[TM][TN] = {};
        float next[Of::A];
        Of::load_weights(next, weights);
        Of::store_weights(shared, next);
        __syncthreads();
        for (int step = 0; step < steps; ++step) {
            const int now = step & 1, then = now ^ 1;
            const bool more = step + 1 < steps;
            if (more) Of::load_weights(next, weights + (step + 1) * BM * BK);
            Of::multiply(acc, shared + now * BM * BK, middle + step * BK * BN);
            if (more) Of::store_weights(shared + then * BM * BK, next);
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                const int output = tile * BM + place<TM, BM>(m, i), pixel = blockIdx.x * BN + place<TN, BN>(n, j);
                if (output < q.outputs && pixel < p.pixels) finish(p, acc[i][j], output, pixel);
            }
    }
}

KERNEL(pair_64, Pair, 256) { both<64, 4>(p); }
KERNEL(pair_32, Pair, 256) { both<32, 2>(p); }
