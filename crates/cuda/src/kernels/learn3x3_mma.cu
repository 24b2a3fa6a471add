// The same on tensor cores, for single precision: a factor is the sum of two numbers of 10 bits behind the point, and of the four products
// of two such sums the smallest is left out, a part of 2^-22 at most. The lower ones are cut off, another part of 2^-20. A tensor core
// rounds sums towards zero, so that long ones are made of short ones.

#if defined(COFILTER_ON_CPU) || __CUDA_ARCH__ >= 800

// N numbers of a lane.
template <int N>
struct Halves {
    u32 high[N], low[N];
};

// The higher is the nearest, so that what is left is as often negative; NaN and what is infinite leave NaN.
template <int N>
DEVICE void halve(Halves<N>& of, int i, float x) {
    constexpr u32 MASK = 0xffffe000u;  // without the 13 bits that a tensor core does not look at
    of.high[i] = (__float_as_uint(x) + 0x1000u) & MASK;
    of.low[i] = __float_as_uint(x - __uint_as_float(of.high[i])) & MASK;
}

// 16 MT filters by 256 elements, of which a warp has all filters of 8 NT.
template <int TW, int MT, int NT>
DEVICE void convolve_3x3_mma(const Conv& p) {
    using Of = Around<TW, 8, TW == 8 ? 8 : 0>;
    constexpr int BM = 16 * MT, THREADS = 256 / (8 * NT) * 32, WEIGHTS = 9 * BM, ROW_W = WEIGHTS + 8;
    static_assert(Of::CHANNEL % 16 == 8 && ROW_W % 16 == 8, "four channels of eight words meet in no bank");
    SHARED(float, shared);
    float* x = shared;
    float* w = x + Of::CHANNELS * Of::CHANNEL;
    int* where = reinterpret_cast<int*>(w + Of::CHANNELS * ROW_W);
    Of::places(where, p, blockIdx.x * Of::COUNT);
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * (8 * NT);
    const int row = lane / 4, word = lane % 4;
    const int depth = (p.src_group + Of::CHANNELS - 1) / Of::CHANNELS * Of::CHANNELS * 9;
    const float* weights = static_cast<const float*>(p.weights) + static_cast<long long>(blockIdx.y) * depth * BM;
    float acc[MT][NT][4] = {};
    __syncthreads();
    for (int channel = 0; channel < p.src_group; channel += Of::CHANNELS) {
        float sum[MT][NT][4] = {};
        Of::load(x, p, where, channel);
        for (int i = threadIdx.x * 4; i < Of::CHANNELS * WEIGHTS; i += THREADS * 4)
            *reinterpret_cast<float4*>(w + i / WEIGHTS * ROW_W + i % WEIGHTS) =
                *reinterpret_cast<const float4*>(weights + channel * WEIGHTS + i);
        __syncthreads();
#pragma unroll 1
        for (int ky = 0; ky < 3; ++ky) {
#pragma unroll
            for (int kx = 0; kx < 3; ++kx) {
                Halves<4> a[MT];
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    const float* at = w + word * ROW_W + (ky * 3 + kx) * BM + i * 16 + row;
                    halve(a[i], 0, at[0]), halve(a[i], 1, at[8]), halve(a[i], 2, at[4 * ROW_W]), halve(a[i], 3, at[4 * ROW_W + 8]);
                }
#pragma unroll
                for (int j = 0; j < NT; j += 2) {
                    Halves<2> b[2];
#pragma unroll
                    for (int n = 0; n < 2; ++n) {
                        const int pixel = first + 8 * (j + n), tile = pixel / (TW * Of::TH), y = pixel / TW % Of::TH, left = pixel % TW;
                        const float* at = x + word * Of::CHANNEL + tile * Of::MAP + (y + ky) * Of::ROW + left + kx + row;
                        halve(b[n], 0, at[0]), halve(b[n], 1, at[4 * Of::CHANNEL]);
                    }
                    // The products of one sum wait for each other, those of others do not.
#pragma unroll
                    for (int i = 0; i < 2 * MT; ++i) mma<TF32>(sum[i / 2][j + i % 2], a[i / 2].high, b[i % 2].low);
#pragma unroll
                    for (int i = 0; i < 2 * MT; ++i) mma<TF32>(sum[i / 2][j + i % 2], a[i / 2].low, b[i % 2].high);
#pragma unroll
                    for (int i = 0; i < 2 * MT; ++i) mma<TF32>(sum[i / 2][j + i % 2], a[i / 2].high, b[i % 2].high);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < MT * NT * 4; ++i) acc[i / (NT * 4)][i / 4 % NT][i % 4] += sum[i / (NT * 4)][i / 4 % NT][i % 4];
        __syncthreads();
    }
    // A lane has two neighbours in a row of each of two filters.
#pragma unroll
    for (int j = 0; j < NT; ++j) {
        const int pixel = first + 8 * j, tile = pixel / (TW * Of::TH);
        const int image = where[3 * tile], y = where[3 * tile + 1] + pixel / TW % Of::TH, left = where[3 * tile + 2] + pixel % TW + 2 * word;
        if (image < 0 || y >= p.height || left >= p.width) continue;
#pragma unroll
        for (int of = 0; of < 2 * MT; ++of) {
            const int filter = blockIdx.y * BM + of * 8 + row;
            if (filter >= p.filters) continue;
            const float bias = p.bias ? p.bias[filter] : 0.0f;
            const long long at = static_cast<long long>(filter) * p.area + y * p.width + left;
            float* to = p.dst + static_cast<long long>(image) * p.dst_image + at;
            const float* add = p.add ? p.add + static_cast<long long>(image) * p.add_image + at : nullptr;
            auto finished = [&](int e, float summand) {
                const float sum = acc[of / 2][j][of % 2 * 2 + e] + bias + summand;
                return p.relu ? rectified(sum) : sum;
            };
            if (p.width % 2 == 0) {
                float two[2] = {};
                if (add) take<2>(two, add);
                *reinterpret_cast<float2*>(to) = float2{finished(0, two[0]), finished(1, two[1])};
                continue;
            }
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (left + e < p.width) to[e] = finished(e, add ? add[e] : 0.0f);
        }
    }
}

// The gradient of 16 filters by 16 channels: of half of the elements and eight channels a warp, all taps. As `filter_gradient_3x3`.
template <int TW>
DEVICE void filter_gradient_3x3_mma(const Conv& p) {
    using Of = Around<TW, 16, 4>;
    constexpr int FILTERS = 16, PIXELS = 256 + 4, GRADIENTS = FILTERS * Of::CHANNELS * 9;
    static_assert(Of::CHANNEL % 8 == 4 && PIXELS % 8 == 4, "eight rows of four words meet in no bank");
    static_assert(GRADIENTS <= FILTERS * PIXELS, "what a half has found lies where the elements were");
    SHARED(float, shared);
    float* x = shared;
    float* g = x + Of::CHANNELS * Of::CHANNEL;
    int* where = reinterpret_cast<int*>(g + FILTERS * PIXELS);
    const int lane = threadIdx.x % 32, row = lane / 4, word = lane % 4;
    const int eight = threadIdx.x / 32 % 2 * 8, half = threadIdx.x / 64;
    const int channel = blockIdx.x * Of::CHANNELS, filter = blockIdx.y * FILTERS;
    const int all = (p.tiles + Of::COUNT - 1) / Of::COUNT;
    const int from = static_cast<long long>(all) * blockIdx.z / p.splits, to = static_cast<long long>(all) * (blockIdx.z + 1) / p.splits;
    float acc[9][4] = {};
    for (int block = from; block < to; ++block) {
        // Behind this barrier nobody looks at the tiles before.
        Of::places(where, p, block * Of::COUNT);
        __syncthreads();
        Of::load(x, p, where, channel);
        load_gradient<Of, TW, FILTERS, PIXELS>(g, p, where, filter);
        __syncthreads();
        float sum[9][4] = {};
#pragma unroll 1
        for (int pixel = 128 * half; pixel < 128 * half + 128; pixel += 8) {
            const float* grad = g + row * PIXELS + pixel + word;
            Halves<4> a;
            halve(a, 0, grad[0]), halve(a, 1, grad[8 * PIXELS]), halve(a, 2, grad[4]), halve(a, 3, grad[8 * PIXELS + 4]);
            const int tile = pixel / (TW * Of::TH), y = pixel / TW % Of::TH, left = pixel % TW;
            const float* at = x + (eight + row) * Of::CHANNEL + tile * Of::MAP + y * Of::ROW + left + word;
#pragma unroll
            for (int tap = 0; tap < 9; tap += 3) {
                Halves<2> b[3];
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) {
                    const float* here = at + tap / 3 * Of::ROW + kx;
                    halve(b[kx], 0, here[0]), halve(b[kx], 1, here[4]);
                }
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) mma<TF32>(sum[tap + kx], a.high, b[kx].low);
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) mma<TF32>(sum[tap + kx], a.low, b[kx].high);
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) mma<TF32>(sum[tap + kx], a.high, b[kx].high);
            }
        }
#pragma unroll
        for (int i = 0; i < 36; ++i) acc[i / 4][i % 4] += sum[i / 4][i % 4];
    }
    // One half gives what it has to the other.
    __syncthreads();
    auto each = [&](auto act) {
#pragma unroll
        for (int tap = 0; tap < 9; ++tap)
#pragma unroll
            for (int e = 0; e < 4; ++e) act(row + e / 2 * 8, eight + 2 * word + e % 2, tap, acc[tap][e]);
    };
    auto place = [&](int f, int c, int tap) { return g + (tap * FILTERS + f) * Of::CHANNELS + c; };
    if (half == 1) each([&](int f, int c, int tap, float sum) { *place(f, c, tap) = sum; });
    __syncthreads();
    if (half == 1) return;
    each([&](int f, int c, int tap, float sum) {
        if (filter + f >= p.filters || channel + c >= p.src_group) return;
        const long long map = (static_cast<long long>(blockIdx.z) * p.filters + filter + f) * p.src_group + channel + c;
        p.partial[map * 9 + tap] = sum + *place(f, c, tap);
    });
}

#define CONV3X3_MMA(TW)                                                                       \
    KERNEL(learn_mma_3x3_##TW##_16, Conv, 128) { convolve_3x3_mma<TW, 1, 8>(p); }             \
    KERNEL(learn_mma_3x3_##TW##_32, Conv, 256) { convolve_3x3_mma<TW, 2, 4>(p); }             \
    KERNEL(learn_mma_filter_3x3_##TW, Conv, 128) { filter_gradient_3x3_mma<TW>(p); }

CONV3X3_MMA(32)
CONV3X3_MMA(16)
CONV3X3_MMA(8)

#endif
