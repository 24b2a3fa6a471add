// Convolutions as a product of a matrix of filters and a matrix of windows that is never written: `y[f, pixel] = sum_k
// w[f, k] x[k, pixel]`. A table says of each k where its element lies in a window, so that it need not run over all of channel, row
// and column: a tile of filters goes over the columns of which it has a weight.

struct Conv {
    const float* src;
    const float* add;  // or null
    float* dst;
    const void* weights;  // of each tile, for each k, its filters; two k to a word where a word holds two
    const float* bias;    // or null
    const int2* table;    // of each k: distance of its element from the window's first; its row and column, 16 bits each; -1: none
    const int* spans;     // of each tile: first k in the table, number of k, a multiple of a step; words of weights before it
    float* partial;       // [split, group, filter, pixel], or null
    int filters;          // of a group
    int tiles;            // of a group
    int splits;
    int pixels;  // of all images
    int area, columns;
    int height, width;
    int stride_h, stride_w, pad_h, pad_w;
    int src_image, dst_image, add_image;
    int src_group;
    int relu;
};
static_assert(sizeof(Conv) == 136, "as the host has it");

// The window of a pixel of the result.
struct Window {
    const float* at;  // its first element, which may lie outside the map
    int row, column;  // of that
    bool inside;      // whether there is such a pixel
};

DEVICE Window window(const Conv& p, int pixel, int group) {
    Window w;
    w.inside = pixel < p.pixels;
    const int image = w.inside ? pixel / p.area : 0;
    const int place = w.inside ? pixel - image * p.area : 0;
    const int row = place / p.columns;
    w.row = row * p.stride_h - p.pad_h;
    w.column = (place - row * p.columns) * p.stride_w - p.pad_w;
    w.at = p.src + static_cast<long long>(image) * p.src_image + group * p.src_group + w.row * p.width + w.column;
    return w;
}

// Element of a window. Where every window lies in the map, only the pixel is asked for.
template <bool POINTWISE>
DEVICE float element(const Conv& p, const Window& w, int2 entry) {
    if (entry.y < 0 || !w.inside) return 0.0f;
    if constexpr (!POINTWISE) {
        const u32 row = w.row + (entry.y >> 16), column = w.column + (entry.y & 0xffff);
        if (row >= static_cast<u32>(p.height) || column >= static_cast<u32>(p.width)) return 0.0f;
    }
    return w.at[entry.x];
}

// Adds bias and summand, rectifies and writes.
DEVICE void finish(const Conv& p, float sum, int filter, int pixel) {
    const int image = pixel / p.area, place = pixel - image * p.area;
    if (p.bias) sum += p.bias[filter];
    if (p.add) sum += p.add[static_cast<long long>(image) * p.add_image + filter * p.area + place];
    if (p.relu) sum = rectified(sum);
    p.dst[static_cast<long long>(image) * p.dst_image + filter * p.area + place] = sum;
}

// A result of one split is kept for `conv_sum`, one of them all is finished.
DEVICE void deliver(const Conv& p, float sum, int filter, int pixel, int group, int split) {
    if (filter >= p.filters || pixel >= p.pixels) return;
    if (p.splits > 1) {
        const int groups = gridDim.z / p.splits;
        const long long row = static_cast<long long>(split * groups + group) * p.filters + filter;
        p.partial[row * p.pixels + pixel] = sum;
    } else {
        finish(p, sum, group * p.filters + filter, pixel);
    }
}

// Place in a tile of element i of T that a thread has, in runs of four (or two), a run of each thread after the other.
template <int T, int B>
DEVICE int place(int thread, int i) {
    constexpr int RUN = T < 4 ? T : 4;
    return thread * RUN + i / RUN * (B / (T / RUN)) + i % RUN;
}

// A tile of BM filters and BN pixels, BK columns at a time, TM x TN of it a thread.
template <int BM, int BN, int BK, int TM, int TN>
struct Tile {
    static constexpr int THREADS = BM / TM * (BN / TN);
    static constexpr int ACROSS = BN / TN;
    static constexpr int A = BM * BK / THREADS, B = BN * BK / THREADS;
    static constexpr int VA = A % 4 == 0 ? 4 : A % 2 == 0 ? 2 : 1;
    static constexpr int RUN_M = TM < 4 ? TM : 4, RUN_N = TN < 4 ? TN : 4;
    static_assert(THREADS % BN == 0 && BM * BK % THREADS == 0 && BN * BK % THREADS == 0, "every thread loads as much");

    // acc += a b, both BK deep.
    DEVICE void multiply(float acc[TM][TN], const float* a, const float* b) {
        const int m = threadIdx.x / ACROSS, n = threadIdx.x % ACROSS;
#pragma unroll
        for (int k = 0; k < BK; ++k) {
            float x[TM], y[TN];
#pragma unroll
            for (int i = 0; i < TM; i += RUN_M) take<RUN_M>(x + i, a + k * BM + place<TM, BM>(m, i));
#pragma unroll
            for (int j = 0; j < TN; j += RUN_N) take<RUN_N>(y + j, b + k * BN + place<TN, BN>(n, j));
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) acc[i][j] += x[i] * y[j];
        }
    }

    DEVICE void load_weights(float* kept, const float* weights) {
#pragma unroll
        for (int i = 0; i < A; i += VA) take<VA>(kept + i, weights + (threadIdx.x + i / VA * THREADS) * VA);
    }

    DEVICE void store_weights(float* a, const float* kept) {
#pragma unroll
        for (int i = 0; i < A; ++i) a[(threadIdx.x + i / VA * THREADS) * VA + i % VA] = kept[i];
    }

    template <bool POINTWISE>
    DEVICE void load_windows(float* kept, const Conv& p, const Window& w, const int2* table) {
#pragma unroll
        for (int i = 0; i < B; ++i) kept[i] = element<POINTWISE>(p, w, table[threadIdx.x / BN + i * (THREADS / BN)]);
    }

    DEVICE void store_windows(float* b, const float* kept) {
#pragma unroll
        for (int i = 0; i < B; ++i) b[(threadIdx.x / BN + i * (THREADS / BN)) * BN + threadIdx.x % BN] = kept[i];
    }

    // acc += a tile of filters times the windows of BN pixels. `shared` has two buffers for both; nothing of it is read afterwards.
    template <bool POINTWISE>
    DEVICE void product(
        float acc[TM][TN], float* shared, const Conv& p, const Window& w, const float* weights, const int2* table, int steps) {
        float* a = shared;
        float* b = shared + 2 * BM * BK;
        float next_a[A], next_b[B];
        if (steps <= 0) return;
        load_weights(next_a, weights);
        load_windows<POINTWISE>(next_b, p, w, table);
        store_weights(a, next_a);
        store_windows(b, next_b);
        __syncthreads();
        for (int step = 0; step < steps; ++step) {
            const int now = step & 1, then = now ^ 1;
            const bool more = step + 1 < steps;
            if (more) {
                load_weights(next_a, weights + (step + 1) * BM * BK);
                load_windows<POINTWISE>(next_b, p, w, table + (step + 1) * BK);
            }
            multiply(acc, a + now * BM * BK, b + now * BN * BK);
            if (more) {
                store_weights(a + then * BM * BK, next_a);
                store_windows(b + then * BN * BK, next_b);
            }
            __syncthreads();
        }
    }
};

// Blocks: tiles of pixels, tiles of filters, groups by splits.
template <int BM, int BN, int BK, int TM, int TN, bool POINTWISE>
DEVICE void convolve(const Conv& p) {
    using Of = Tile<BM, BN, BK, TM, TN>;
    SHARED(float, shared);
    const int group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
    const int* span = p.spans + 3 * (group * p.tiles + blockIdx.y);
    const int steps = span[1] / BK;
    const int from = static_cast<long long>(steps) * split / p.splits, to = static_cast<long long>(steps) * (split + 1) / p.splits;
    const Window w = window(p, blockIdx.x * BN + threadIdx.x % BN, group);
    const float* weights = static_cast<const float*>(p.weights) + span[2] + from * BM * BK;
    float acc[TM][TN] = {};
    Of::template product<POINTWISE>(acc, shared, p, w, weights, p.table + span[0] + from * BK, to - from);
    const int m = threadIdx.x / Of::ACROSS, n = threadIdx.x % Of::ACROSS;
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j)
            deliver(p, acc[i][j], blockIdx.y * BM + place<TM, BM>(m, i), blockIdx.x * BN + place<TN, BN>(n, j), group, split);
}

#define CONV(BM, BN, BK, TM, TN)                                                                                                      \
    KERNEL(conv_##BM##x##BN, Conv, BM / TM * (BN / TN)) { convolve<BM, BN, BK, TM, TN, false>(p); }                                   \
    KERNEL(conv1x1_##BM##x##BN, Conv, BM / TM * (BN / TN)) { convolve<BM, BN, BK, TM, TN, true>(p); }

CONV(128, 128, 8, 8, 8)
CONV(64, 64, 16, 4, 4)
CONV(32, 32, 16, 2, 4)
CONV(16, 64, 16, 2, 4)

// The sum over splits, finished. One thread an element, filters of all groups by pixels.
KERNEL(conv_sum, Conv, 256) {
    const long long all = static_cast<long long>(p.filters) * p.tiles * p.pixels;  // `tiles` is the number of groups here
    const long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= all) return;
    float sum = 0.0f;
    for (int split = 0; split < p.splits; ++split) sum += p.partial[split * all + at];
    finish(p, sum, static_cast<int>(at / p.pixels), static_cast<int>(at % p.pixels));
}
