// Convolutions on tensor cores: factors of 10, 10 or 7 bits behind the point, sums in f32. Maps and results stay f32.

// The words of two consecutive columns, or of one where a word holds one.
template <int MATH>
DEVICE u32 word_of(const Conv& p, const Window& w, const int2* table, int word) {
    if constexpr (MATH == TF32) {
        return to_tf32(element<false>(p, w, table[word]));
    } else {
        const float low = element<false>(p, w, table[2 * word]), high = element<false>(p, w, table[2 * word + 1]);
        return MATH == F16 ? to_f16x2(low, high) : to_bf16x2(low, high);
    }
}

// A tile of BM filters and BN pixels, 16 words deep; WM x WN of it a warp.
template <int MATH, int BM, int BN, int WM, int WN>
DEVICE void convolve_mma(const Conv& p) {
    constexpr int WORDS = 16, ROW_A = BM + 8, ROW_B = BN + 8;  // rows begin 8 banks apart: the lanes of a load meet in none
    constexpr int THREADS = BM / WM * (BN / WN) * 32;
    constexpr int A = BM * WORDS / THREADS, B = BN * WORDS / THREADS;
    constexpr int MT = WM / 16, NT = WN / 8;
    constexpr int DEPTH = MATH == TF32 ? WORDS : 2 * WORDS;
    static_assert(THREADS % BN == 0 && THREADS % BM == 0, "every thread loads as much");
    SHARED(u32, shared);
    u32* a = shared;
    u32* b = shared + 2 * WORDS * ROW_A;
    const int group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
    const int* span = p.spans + 3 * (group * p.tiles + blockIdx.y);
    const int all = span[1] / DEPTH;
    const int from = static_cast<long long>(all) * split / p.splits, to = static_cast<long long>(all) * (split + 1) / p.splits;
    const int steps = to - from;
    const u32* weights = static_cast<const u32*>(p.weights) + span[2] + from * BM * WORDS;
    const int2* table = p.table + span[0] + from * DEPTH;
    const Window w = window(p, blockIdx.x * BN + threadIdx.x % BN, group);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int m0 = warp / (BN / WN) * WM, n0 = warp % (BN / WN) * WN;
    const int row = lane / 4, word = lane % 4;
    float acc[MT][NT][4] = {};
    u32 next_a[A], next_b[B];

    auto load = [&](int step) {
#pragma unroll
        for (int i = 0; i < A; ++i) next_a[i] = weights[step * BM * WORDS + threadIdx.x + i * THREADS];
#pragma unroll
        for (int i = 0; i < B; ++i) next_b[i] = word_of<MATH>(p, w, table + step * DEPTH, threadIdx.x / BN + i * (THREADS / BN));
    };
    auto store = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < A; ++i) {
            const int at = threadIdx.x + i * THREADS;
            a[(buffer * WORDS + at / BM) * ROW_A + at % BM] = next_a[i];
        }
#pragma unroll
        for (int i = 0; i < B; ++i)
            b[(buffer * WORDS + threadIdx.x / BN + i * (THREADS / BN)) * ROW_B + threadIdx.x % BN] = next_b[i];
    };

    if (steps > 0) {
        load(0);
        store(0);
        __syncthreads();
    }
    for (int step = 0; step < steps; ++step) {
        const int now = step & 1;
        if (step + 1 < steps) load(step + 1);
#pragma unroll
        for (int k = 0; k < WORDS; k += 8) {
            const u32* at = a + (now * WORDS + k + word) * ROW_A + m0 + row;
            const u32* bt = b + (now * WORDS + k + word) * ROW_B + n0 + row;
            u32 x[MT][4], y[NT][2];
#pragma unroll
            for (int i = 0; i < MT; ++i) {
                x[i][0] = at[i * 16], x[i][1] = at[i * 16 + 8];
                x[i][2] = at[4 * ROW_A + i * 16], x[i][3] = at[4 * ROW_A + i * 16 + 8];
            }
#pragma unroll
            for (int j = 0; j < NT; ++j) y[j][0] = bt[j * 8], y[j][1] = bt[4 * ROW_B + j * 8];
#pragma unroll
            for (int i = 0; i < MT; ++i)
#pragma unroll
                for (int j = 0; j < NT; ++j) mma<MATH>(acc[i][j], x[i], y[j]);
        }
        if (step + 1 < steps) store(now ^ 1);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int filter = blockIdx.y * BM + m0 + i * 16 + row + e / 2 * 8;
                const int pixel = blockIdx.x * BN + n0 + j * 8 + word * 2 + e % 2;
                deliver(p, acc[i][j][e], filter, pixel, group, split);
            }
}

#define CONV_MMA(name, MATH)                                                                      \
    KERNEL(conv_##name##_64x64, Conv, 128) { convolve_mma<MATH, 64, 64, 32, 32>(p); }             \
    KERNEL(conv_##name##_128x128, Conv, 256) { convolve_mma<MATH, 128, 128, 64, 32>(p); }

#if defined(COFILTER_ON_CPU) || __CUDA_ARCH__ >= 800
CONV_MMA(tf32, TF32)
CONV_MMA(f16, F16)
CONV_MMA(bf16, BF16)
#endif
