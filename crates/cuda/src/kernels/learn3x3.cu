// Windows of 3x3 around each element of a map, all steps 1: what most convolutions are. A block has 256 elements of the result: tiles of
// TW columns, with a ring of what lies around them in shared memory, eight channels at a time. A thread has four neighbours in a row.

// Of `Conv` here: `tiles`, of all images; `src_group`, the number of channels; `columns` and `area`, of the map.
template <int TW, int C = 8, int GAP = 4>
struct Around {
    static constexpr int TH = TW == 32 ? 8 : TW;
    static constexpr int COUNT = 256 / (TW * TH);        // tiles of a block
    static constexpr int ROW = TW + 4;                   // words from row to row
    static constexpr int MAP = (TH + 2) * ROW;           // of a tile
    static constexpr int CHANNEL = COUNT * MAP + GAP;    // channels that are read together meet in no bank
    static constexpr int CHANNELS = C;

    // Where the tiles of a block begin: image, row and column; image -1: there is no such tile.
    DEVICE void places(int* where, const Conv& p, int first) {
        const int across = (p.width + TW - 1) / TW, down = (p.height + TH - 1) / TH;
        for (int q = threadIdx.x; q < COUNT; q += blockDim.x) {
            const int tile = first + q, image = tile / (across * down), rest = tile - image * across * down;
            where[3 * q] = tile < p.tiles ? image : -1;
            where[3 * q + 1] = rest / across * TH;
            where[3 * q + 2] = rest % across * TW;
        }
    }

    static constexpr int ROWS = CHANNELS * COUNT * (TH + 2);

    // Element `at` of a row of the tiles, counted over channels, tiles and rows, to where column `to` of it lies.
    DEVICE void element(float* x, const Conv& p, const int* where, int channel, int line, int at, int to) {
        const int row = line % (TH + 2), q = line / (TH + 2) % COUNT, c = line / (TH + 2) / COUNT;
        const int y = where[3 * q + 1] + row - 1, column = where[3 * q + 2] + at;
        const bool inside = where[3 * q] >= 0 && channel + c < p.src_group && static_cast<u32>(y) < static_cast<u32>(p.height) &&
                            static_cast<u32>(column) < static_cast<u32>(p.width);
        const float* map = p.src + static_cast<long long>(where[3 * q]) * p.src_image + (channel + c) * p.area;
        x[c * CHANNEL + q * MAP + row * ROW + to] = inside ? map[y * p.width + column] : 0.0f;
    }

    // Some channels of the tiles with their rings: rows by the lanes of a warp, then both ends of each.
    DEVICE void load(float* x, const Conv& p, const int* where, int channel) {
        const int column = threadIdx.x % TW;
#pragma unroll 4
        for (int line = threadIdx.x / TW; line < ROWS; line += blockDim.x / TW) element(x, p, where, channel, line, column, column + 1);
#pragma unroll 2
        for (int end = threadIdx.x; end < 2 * ROWS; end += blockDim.x)
            element(x, p, where, channel, end / 2, end % 2 ? TW : -1, end % 2 ? TW + 1 : 0);
    }
};

// FG times eight filters by 256 elements: eight filters by four elements a thread.
template <int TW, int FG>
DEVICE void convolve_3x3(const Conv& p) {
    using Of = Around<TW>;
    constexpr int BM = 8 * FG, TAPS = 9 * Of::CHANNELS;
    SHARED(float, shared);
    float* x = shared;
    float* w = x + Of::CHANNELS * Of::CHANNEL;
    int* where = reinterpret_cast<int*>(w + TAPS * BM);
    Of::places(where, p, blockIdx.x * Of::COUNT);
    const int group = threadIdx.x / 64, q = threadIdx.x % 64 / (64 / Of::COUNT), rest = threadIdx.x % (64 / Of::COUNT);
    const int row = rest / (TW / 4), column = rest % (TW / 4) * 4;
    const int depth = (p.src_group + Of::CHANNELS - 1) / Of::CHANNELS * TAPS;
    const float* weights = static_cast<const float*>(p.weights) + static_cast<long long>(blockIdx.y) * depth * BM;
    float acc[8][4] = {};
    __syncthreads();
    for (int channel = 0; channel < p.src_group; channel += Of::CHANNELS) {
        Of::load(x, p, where, channel);
        for (int i = threadIdx.x * 4; i < TAPS * BM; i += 64 * FG * 4)
            *reinterpret_cast<float4*>(w + i) = *reinterpret_cast<const float4*>(weights + channel * 9 * BM + i);
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < Of::CHANNELS; ++c) {
#pragma unroll
            for (int ky = 0; ky < 3; ++ky) {
                const float* line = x + c * Of::CHANNEL + q * Of::MAP + (row + ky) * Of::ROW + column;
                float v[6];
                take<4>(v, line);
                take<2>(v + 4, line + 4);
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) {
                    const float* filters = w + (c * 9 + ky * 3 + kx) * BM + group * 8;
                    float f[8];
                    take<4>(f, filters);
                    take<4>(f + 4, filters + 4);
#pragma unroll
                    for (int i = 0; i < 8; ++i)
#pragma unroll
                        for (int j = 0; j < 4; ++j) acc[i][j] += f[i] * v[kx + j];
                }
            }
        }
        __syncthreads();
    }
    const int image = where[3 * q], y = where[3 * q + 1] + row, left = where[3 * q + 2] + column;
    if (image < 0 || y >= p.height) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int filter = blockIdx.y * BM + group * 8 + i;
        if (filter >= p.filters) continue;
        const float bias = p.bias ? p.bias[filter] : 0.0f;
        const long long at = static_cast<long long>(filter) * p.area + y * p.width + left;
        float* to = p.dst + static_cast<long long>(image) * p.dst_image + at;
        const float* add = p.add ? p.add + static_cast<long long>(image) * p.add_image + at : nullptr;
        auto finished = [&](int j, float summand) {
            const float sum = acc[i][j] + bias + summand;
            return p.relu ? rectified(sum) : sum;
        };
        if (p.width % 4 == 0) {
            if (left >= p.width) continue;
            float four[4] = {};
            if (add) take<4>(four, add);
            *reinterpret_cast<float4*>(to) = float4{finished(0, four[0]), finished(1, four[1]), finished(2, four[2]), finished(3, four[3])};
            continue;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (left + j < p.width) to[j] = finished(j, add ? add[j] : 0.0f);
    }
}

// The gradient of the result of some filters where the tiles lie, [filter, element], by 128 threads.
template <class Of, int TW, int FILTERS, int PIXELS>
DEVICE void load_gradient(float* g, const Conv& p, const int* where, int filter) {
    // A thread has the same four elements of every other filter.
    const int pixel = 4 * (threadIdx.x % 64), mine = pixel / (TW * Of::TH);
    const int y = where[3 * mine + 1] + pixel / TW % Of::TH, left = where[3 * mine + 2] + pixel % TW;
    const bool there = where[3 * mine] >= 0 && y < p.height, whole = p.width % 4 == 0;
    const float* map = p.add + static_cast<long long>(where[3 * mine]) * p.add_image + y * p.width + left;
#pragma unroll 4
    for (int of = threadIdx.x / 64; of < FILTERS; of += 2) {
        float four[4] = {};
        const float* at = map + static_cast<long long>(filter + of) * p.area;
        if (there && filter + of < p.filters && left < p.width) {
            if (whole) {
                take<4>(four, at);
            } else {
#pragma unroll
                for (int e = 0; e < 4; ++e) four[e] = left + e < p.width ? at[e] : 0.0f;
            }
        }
        *reinterpret_cast<float4*>(g + of * PIXELS + pixel) = float4{four[0], four[1], four[2], four[3]};
    }
}

// The gradient of 16 filters by eight channels: the nine taps of one of each a thread. `add` is the gradient of the result, `partial` has
// [split, filter, channel, tap].
template <int TW>
DEVICE void filter_gradient_3x3(const Conv& p) {
    using Of = Around<TW>;
    constexpr int FILTERS = 16, PIXELS = 256 + 4;
    SHARED(float, shared);
    float* x = shared;
    float* g = x + Of::CHANNELS * Of::CHANNEL;
    int* where = reinterpret_cast<int*>(g + FILTERS * PIXELS);
    const int c = threadIdx.x % 8, f = threadIdx.x / 8;
    const int channel = blockIdx.x * Of::CHANNELS, filter = blockIdx.y * FILTERS;
    const int all = (p.tiles + Of::COUNT - 1) / Of::COUNT;
    const int from = static_cast<long long>(all) * blockIdx.z / p.splits, to = static_cast<long long>(all) * (blockIdx.z + 1) / p.splits;
    float acc[3][3] = {};
    for (int block = from; block < to; ++block) {
        // Behind this barrier nobody looks at the tiles before.
        Of::places(where, p, block * Of::COUNT);
        __syncthreads();
        Of::load(x, p, where, channel);
        load_gradient<Of, TW, FILTERS, PIXELS>(g, p, where, filter);
        __syncthreads();
#pragma unroll 1
        for (int strip = 0; strip < Of::COUNT * (TW / 4); ++strip) {
            const int q = strip / (TW / 4), column = strip % (TW / 4) * 4;
            const float* line = x + c * Of::CHANNEL + q * Of::MAP + column;
            const float* grad = g + f * PIXELS + q * (TW * Of::TH) + column;
            float v[3][6];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                take<4>(v[row], line + row * Of::ROW);
                take<2>(v[row] + 4, line + row * Of::ROW + 4);
            }
#pragma unroll
            for (int row = 0; row < Of::TH; ++row) {
                float four[4];
                take<4>(v[(row + 2) % 3], line + (row + 2) * Of::ROW);
                take<2>(v[(row + 2) % 3] + 4, line + (row + 2) * Of::ROW + 4);
                take<4>(four, grad + row * TW);
#pragma unroll
                for (int ky = 0; ky < 3; ++ky)
#pragma unroll
                    for (int kx = 0; kx < 3; ++kx)
#pragma unroll
                        for (int j = 0; j < 4; ++j) acc[ky][kx] += four[j] * v[(row + ky) % 3][kx + j];
            }
        }
    }
    if (filter + f >= p.filters || channel + c >= p.src_group) return;
    float* to_tap = p.partial + ((static_cast<long long>(blockIdx.z) * p.filters + filter + f) * p.src_group + channel + c) * 9;
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) to_tap[tap] = acc[tap / 3][tap % 3];
}

#define CONV3X3(TW)                                                                   \
    KERNEL(learn_3x3_##TW##_16, Conv, 128) { convolve_3x3<TW, 2>(p); }                \
    KERNEL(learn_3x3_##TW##_32, Conv, 256) { convolve_3x3<TW, 4>(p); }                \
    KERNEL(learn_filter_3x3_##TW, Conv, 128) { filter_gradient_3x3<TW>(p); }

CONV3X3(32)
CONV3X3(16)
CONV3X3(8)
