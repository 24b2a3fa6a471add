// Training: what comes back through convolutions, and through everything that looks at each element or at a few around it. A gradient
// that several take part in is written by the first and added to by the others (`accumulate`).

// Weights of a convolution in the order in which its kernels read them: of each tile of filters, for each column, its filters.
struct Pack {
    const float* src;             // [group, filter, channel, tap]
    float* dst;
    int filters, channels, taps;  // of a group
    int depth;                    // columns, with those that fill the last step
    int tile, tiles, groups;
    int transposed;               // for the gradient of the source: channels in the place of filters, taps in reverse
};
static_assert(sizeof(Pack) == 48, "as the host has it");

struct Packs {
    const Pack* list;  // as many as the grid has rows
};

KERNEL(learn_pack, Packs, 256) {
    const Pack& of = p.list[blockIdx.y];
    const u32 all = static_cast<u32>(of.groups) * of.tiles * of.depth * of.tile;
    for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < all; at += gridDim.x * blockDim.x) {
        const u32 line = at / of.tile;
        const int m = at - line * of.tile, tile = line / of.depth, column = line - tile * of.depth;
        const int group = tile / of.tiles, row = tile % of.tiles * of.tile + m;
        const int rows = of.transposed ? of.channels : of.filters, columns = (of.transposed ? of.filters : of.channels) * of.taps;
        float value = 0.0f;
        if (row < rows && column < columns) {
            const int other = column / of.taps, tap = column % of.taps;
            const long long filter = static_cast<long long>(group) * of.filters + (of.transposed ? other : row);
            const int channel = of.transposed ? row : other;
            value = of.src[(filter * of.channels + channel) * of.taps + (of.transposed ? of.taps - 1 - tap : tap)];
        }
        of.dst[at] = value;
    }
}

// The gradient of the filters: `w[f, k] = sum_pixel y[f, pixel] x[k, pixel]`. Here `add` is the gradient of the result, `partial` has
// [split, group, filter, column], and `tiles` is the number of columns. BM filters by BK columns, 32 pixels at a time, TM x TK of it a
// thread.
template <int BM, int BK, int TM, int TK>
DEVICE void filter_gradient(const Conv& p) {
    constexpr int PIXELS = 32, ROW = PIXELS + 4;  // lanes that read four of a row each meet in no bank
    constexpr int ACROSS = BK / TK, DOWN = BM / TM, THREADS = ACROSS * DOWN, WARPS = THREADS / 32;
    constexpr int A = BM / WARPS, B = BK / WARPS;
    static_assert(BM % WARPS == 0 && BK % WARPS == 0, "every warp loads as many rows");
    SHARED(float, shared);
    float* a = shared;
    float* b = shared + BM * ROW;
    const int group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
    const int all = (p.pixels + PIXELS - 1) / PIXELS;
    const int from = static_cast<long long>(all) * split / p.splits, to = static_cast<long long>(all) * (split + 1) / p.splits;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int f0 = blockIdx.y * BM, k0 = blockIdx.x * BK;
    const int m = threadIdx.x / ACROSS, n = threadIdx.x % ACROSS;
    int2 entries[B];
#pragma unroll
    for (int i = 0; i < B; ++i) {
        const int column = k0 + warp + i * WARPS;
        entries[i] = column < p.tiles ? p.table[column] : int2{0, -1};
    }
    float acc[TM][TK] = {};
    float next_a[A], next_b[B];
    auto load = [&](int step) {
        const int pixel = step * PIXELS + lane;
        const Window w = window(p, pixel, group);
        const int image = w.inside ? pixel / p.area : 0, place = w.inside ? pixel - image * p.area : 0;
        const float* gradient = p.add + static_cast<long long>(image) * p.add_image + static_cast<long long>(group) * p.filters * p.area + place;
#pragma unroll
        for (int i = 0; i < A; ++i) {
            const int filter = f0 + warp + i * WARPS;
            next_a[i] = w.inside && filter < p.filters ? gradient[static_cast<long long>(filter) * p.area] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < B; ++i) next_b[i] = element<false>(p, w, entries[i]);
    };
    if (from < to) load(from);
    for (int step = from; step < to; ++step) {
#pragma unroll
        for (int i = 0; i < A; ++i) a[(warp + i * WARPS) * ROW + lane] = next_a[i];
#pragma unroll
        for (int i = 0; i < B; ++i) b[(warp + i * WARPS) * ROW + lane] = next_b[i];
        __syncthreads();
        if (step + 1 < to) load(step + 1);
#pragma unroll 4
        for (int pixel = 0; pixel < PIXELS; pixel += 4) {
            float x[TM][4], y[TK][4];
#pragma unroll
            for (int i = 0; i < TM; ++i) take<4>(x[i], a + (m + i * DOWN) * ROW + pixel);
#pragma unroll
            for (int j = 0; j < TK; ++j) take<4>(y[j], b + (n + j * ACROSS) * ROW + pixel);
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TK; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) acc[i][j] += x[i][e] * y[j][e];
        }
        __syncthreads();
    }
    const int groups = gridDim.z / p.splits;
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TK; ++j) {
            const int filter = f0 + m + i * DOWN, column = k0 + n + j * ACROSS;
            if (filter >= p.filters || column >= p.tiles) continue;
            const long long row = static_cast<long long>(split * groups + group) * p.filters + filter;
            p.partial[row * p.tiles + column] = acc[i][j];
        }
}

KERNEL(learn_filter_16x64, Conv, 128) { filter_gradient<16, 64, 2, 4>(p); }
KERNEL(learn_filter_64x64, Conv, 256) { filter_gradient<64, 64, 4, 4>(p); }

// The gradient of the source of a convolution with any stride, one thread an element.
struct Source {
    const float* grad;
    const float* weights;  // [group, filter, channel, row, column]
    float* dst;
    int images, groups, filters, channels;  // the last two of a group
    int height, width;                      // of the source
    int rows, columns;                      // of the result
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, step_h, step_w;
    int accumulate;
    int at_once;  // filters whose weights are in shared memory
};
static_assert(sizeof(Source) == 96, "as the host has it");

constexpr int SOURCE_CHANNELS = 8;  // of a block

// Weights of some filters of a group for eight of its channels, [filter, tap, channel].
DEVICE void load_weights(float* shared, const Source& p, int filter, int count, int taps) {
    const float* weights = p.weights + static_cast<long long>(blockIdx.z) * p.filters * p.channels * taps;
    for (int i = threadIdx.x; i < count * taps * SOURCE_CHANNELS; i += blockDim.x) {
        const int channel = blockIdx.y * SOURCE_CHANNELS + i % SOURCE_CHANNELS, tap = i / SOURCE_CHANNELS % taps;
        const int f = filter + i / (SOURCE_CHANNELS * taps);
        shared[i] = channel < p.channels ? weights[(static_cast<long long>(f) * p.channels + channel) * taps + tap] : 0.0f;
    }
}

// Writes, or adds, eight channels of an element.
DEVICE void deliver_source(const Source& p, const float* sum, u32 image, u32 place) {
    const int first = blockIdx.y * SOURCE_CHANNELS;
    const long long map = (static_cast<long long>(image) * p.groups + blockIdx.z) * p.channels + first;
    float* to = p.dst + map * p.height * p.width + place;
#pragma unroll
    for (int c = 0; c < SOURCE_CHANNELS; ++c, to += p.height * p.width) {
        if (first + c < p.channels) *to = p.accumulate ? *to + sum[c] : sum[c];
    }
}

// Eight channels of an element a thread; blocks: elements, channels of a group by eight, groups.
KERNEL(learn_source, Source, 256) {
    constexpr int CHANNELS = SOURCE_CHANNELS;
    SHARED(float, shared);
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 area = p.height * p.width;
    const u32 image = at / area, place = at - image * area;
    const bool inside = image < static_cast<u32>(p.images);
    const int row = place / static_cast<u32>(p.width), column = place - row * p.width;
    const int taps = p.kernel_h * p.kernel_w, results = p.rows * p.columns;
    const float* grad = p.grad + (static_cast<long long>(image) * p.groups + blockIdx.z) * p.filters * results;
    float sum[CHANNELS] = {};
    for (int filter = 0; filter < p.filters; filter += p.at_once) {
        const int count = min(p.at_once, p.filters - filter);
        load_weights(shared, p, filter, count, taps);
        __syncthreads();
        for (int i = 0; inside && i < p.kernel_h; ++i) {
            const int y = row + p.pad_h - i * p.step_h;
            if (y < 0 || y % p.stride_h != 0 || y / p.stride_h >= p.rows) continue;
            for (int j = 0; j < p.kernel_w; ++j) {
                const int x = column + p.pad_w - j * p.step_w;
                if (x < 0 || x % p.stride_w != 0 || x / p.stride_w >= p.columns) continue;
                const float* from = grad + static_cast<long long>(filter) * results + y / p.stride_h * p.columns + x / p.stride_w;
                const float* weight = shared + (i * p.kernel_w + j) * CHANNELS;
                for (int f = 0; f < count; ++f) {
                    const float gradient = from[static_cast<long long>(f) * results];
                    float w[CHANNELS];
                    take<4>(w, weight + f * taps * CHANNELS);
                    take<4>(w + 4, weight + f * taps * CHANNELS + 4);
#pragma unroll
                    for (int c = 0; c < CHANNELS; ++c) sum[c] += gradient * w[c];
                }
            }
        }
        __syncthreads();
    }
    if (inside) deliver_source(p, sum, image, place);
}

// The same for windows of 3x3 around every second element: eight channels of the four elements between two rows and columns of them a
// thread, to each of which every tap leads once.
KERNEL(learn_source_3x3, Source, 256) {
    constexpr int TAPS = 9;
    SHARED(float, shared);
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x, results = p.rows * p.columns;
    const u32 image = at / results, place = at - image * results;
    const bool inside = image < static_cast<u32>(p.images);
    const int row = place / static_cast<u32>(p.columns), column = place - row * p.columns;
    const bool below = row + 1 < p.rows, right = column + 1 < p.columns;
    const float* grad = p.grad + (static_cast<long long>(image) * p.groups + blockIdx.z) * p.filters * results + place;
    float sum[2][2][SOURCE_CHANNELS] = {};
    for (int filter = 0; filter < p.filters; filter += p.at_once) {
        const int count = min(p.at_once, p.filters - filter);
        load_weights(shared, p, filter, count, TAPS);
        __syncthreads();
        for (int f = 0; inside && f < count; ++f) {
            const float* from = grad + static_cast<long long>(filter + f) * results;
            const float around[2][2] = {{from[0], right ? from[1] : 0.0f},
                                        {below ? from[p.columns] : 0.0f, below && right ? from[p.columns + 1] : 0.0f}};
#pragma unroll
            for (int tap = 0; tap < TAPS; ++tap) {
                // The middle of a window is the even element; the odd one behind it has the first tap of the next window, and the last.
                const int i = tap / 3, j = tap % 3;
                const float gradient = around[i == 0][j == 0];
                float w[SOURCE_CHANNELS];
                take<4>(w, shared + (f * TAPS + tap) * SOURCE_CHANNELS);
                take<4>(w + 4, shared + (f * TAPS + tap) * SOURCE_CHANNELS + 4);
#pragma unroll
                for (int c = 0; c < SOURCE_CHANNELS; ++c) sum[i != 1][j != 1][c] += gradient * w[c];
            }
        }
        __syncthreads();
    }
    if (!inside) return;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j)
            if (2 * row + i < p.height && 2 * column + j < p.width)
                deliver_source(p, sum[i][j], image, (2 * row + i) * p.width + 2 * column + j);
}

struct Learn {
    const float* src;
    const float* grad;    // of the result
    const float* result;  // where it was rectified, or null
    const float* factor;  // of each element, or null
    float* dst;
    float* sums;              // of parts
    float* moments;           // of a normalisation: mean of each channel, then variance of each
    float* about;             // of it: 1 / deviation; then mean, factor and shift of each; then the means of gradient and of gradient by value
    const float* weight_src;  // of it
    const float* bias_src;
    float* weight_dst;  // gradients, or null
    float* bias_dst;
    int images, channels, height, width;  // of the source
    int rows, columns;                    // of the result
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int at, image_len;  // first element in an image of the result, and its length
    int kind, size;     // as of `Map`
    int parts, accumulate;
    float weight, beta, k, eps;
};
static_assert(sizeof(Learn) == 184, "as the host has it");

DEVICE float gradient_at(const Learn& p, u32 at) { return p.result && !(p.result[at] > 0.0f) ? 0.0f : p.grad[at]; }

DEVICE void give(const Learn& p, u32 at, float x) { p.dst[at] = p.accumulate ? p.dst[at] + x : x; }

DEVICE void give4(const Learn& p, u32 at, float x[4]) {
    float4* to = reinterpret_cast<float4*>(p.dst + at);
    if (p.accumulate) {
        const float4 before = *to;
        x[0] += before.x, x[1] += before.y, x[2] += before.z, x[3] += before.w;
    }
    *to = float4{x[0], x[1], x[2], x[3]};
}

DEVICE void gradients_at(const Learn& p, u32 at, float x[4]) {
    take<4>(x, p.grad + at);
    if (!p.result) return;
    float y[4];
    take<4>(y, p.result + at);
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = y[e] > 0.0f ? x[e] : 0.0f;
}

// What passes unchanged, but for a rectification and a factor: `size` elements of each image, from or to a part of an image. Four
// elements a thread.
KERNEL(learn_pass, Learn, 256) {
    const u32 at = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    const u32 size = p.size, all = p.images * size;
    if (size % 4 == 0 && p.image_len % 4 == 0 && p.at % 4 == 0 && !p.factor) {
        if (at >= all) return;
        const u32 image = at / size, from = image * p.image_len + p.at + (at - image * size);
        float x[4];
        gradients_at(p, from, x);
        give4(p, at, x);
        return;
    }
    for (u32 i = at; i < at + 4 && i < all; ++i) {
        const u32 image = i / size, from = image * p.image_len + p.at + (i - image * size);
        float x = gradient_at(p, from);
        if (p.factor) x *= p.factor[from];
        give(p, i, x);
    }
}

// The sum of two values of `size` elements in all, or one alone, rectified if `kind` is 1. Four elements a thread.
KERNEL(learn_add, Learn, 256) {
    const u32 at = 4 * (blockIdx.x * blockDim.x + threadIdx.x), all = p.size;
    auto finished = [&](float x) { return p.kind ? rectified(x) : x; };
    if (all % 4 == 0) {
        if (at >= all) return;
        float x[4], y[4] = {};
        take<4>(x, p.src + at);
        if (p.grad) take<4>(y, p.grad + at);
        *reinterpret_cast<float4*>(p.dst + at) = float4{finished(x[0] + y[0]), finished(x[1] + y[1]), finished(x[2] + y[2]), finished(x[3] + y[3])};
        return;
    }
    for (u32 i = at; i < at + 4 && i < all; ++i) p.dst[i] = finished(p.src[i] + (p.grad ? p.grad[i] : 0.0f));
}

// The sum over parts of `size` numbers: 32 numbers a block, eight threads each.
KERNEL(learn_sum, Learn, 256) {
    SHARED(float, shared);
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
    const long long at = static_cast<long long>(blockIdx.x) * 32 + lane;
    float sum = 0.0f;
    if (at < p.size)
        for (int i = part; i < p.parts; i += 8) sum += p.src[static_cast<long long>(i) * p.size + at];
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (part > 0 || at >= p.size) return;
    for (int i = 1; i < 8; ++i) sum += shared[i * 32 + lane];
    p.dst[at] = sum;
}

// Sums of two numbers over the 256 threads of a block.
DEVICE void total(float* shared, float& first, float& second) {
    const int thread = threadIdx.x;
    shared[thread] = first;
    shared[256 + thread] = second;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (thread < half) {
            shared[thread] += shared[thread + half];
            shared[256 + thread] += shared[256 + thread + half];
        }
        __syncthreads();
    }
    first = shared[0], second = shared[256];
}

// Elements of a channel that a part of its images has; blocks: channels, parts.
struct Part {
    int from, count;  // images
};

DEVICE Part part_of(const Learn& p, int part) {
    const u32 images = p.images, parts = p.parts;  // of which there are at most 64
    const int from = images * part / parts;
    return {from, static_cast<int>(images * (part + 1) / parts) - from};
}

DEVICE u32 element_of(const Learn& p, const Part& part, u32 i, u32 area) {
    const u32 image = i / area;
    return ((part.from + image) * p.channels + blockIdx.x) * area + (i - image * area);
}

// Mean and sum of squared differences from it, of a part of a channel.
KERNEL(learn_moments, Learn, 256) {
    SHARED(float, shared);
    const int area = p.height * p.width;
    const Part part = part_of(p, blockIdx.y);
    const int count = part.count * area;
    const float near = p.src[element_of(p, part, 0, area)];
    float sum = 0.0f, squares = 0.0f;
    if (area % 4 == 0) {
        for (int i = 4 * threadIdx.x; i < count; i += 1024) {
            float x[4];
            take<4>(x, p.src + element_of(p, part, i, area));
#pragma unroll
            for (int e = 0; e < 4; ++e) sum += x[e] - near, squares += (x[e] - near) * (x[e] - near);
        }
    } else {
        for (int i = threadIdx.x; i < count; i += 256) {
            const float x = p.src[element_of(p, part, i, area)] - near;
            sum += x, squares += x * x;
        }
    }
    total(shared, sum, squares);
    if (threadIdx.x > 0) return;
    float* to = p.sums + 2 * (blockIdx.x * p.parts + blockIdx.y);
    to[0] = near + sum / count;
    to[1] = squares - sum * (sum / count);
}

// The sum of a number of each of 64 threads, for all of them.
DEVICE double total64(double* shared, double x) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    const double sum = shared[0];
    __syncthreads();
    return sum;
}

// Mean and variance of each channel from those of its parts, up to 64, of which there are none if they are known; a block a channel.
KERNEL(learn_statistics, Learn, 64) {
    SHARED(double, shared);
    const int channel = blockIdx.x, part = threadIdx.x;
    if (p.parts > 0) {
        const bool there = part < p.parts;
        const float* own = p.sums + 2 * (channel * p.parts + part);
        const double count = there ? static_cast<double>(part_of(p, part).count) * (p.height * p.width) : 0.0;
        const double mean = there ? own[0] : 0.0f, all = static_cast<double>(p.images) * (p.height * p.width);
        const double whole = total64(shared, count * mean) / all;
        const double off = mean - whole;
        const double squares = total64(shared, there ? own[1] + count * off * off : 0.0);
        if (part == 0) {
            p.moments[channel] = static_cast<float>(whole);
            p.moments[p.channels + channel] = static_cast<float>(squares / all);
        }
    }
    if (part > 0) return;
    const float inverse = 1.0f / sqrtf(p.moments[p.channels + channel] + p.eps);
    p.about[channel] = inverse;
    float* scale = p.about + p.channels + 3 * channel;
    scale[0] = p.moments[channel], scale[1] = p.weight_src[channel] * inverse, scale[2] = p.bias_src[channel];
}

// What is normalised, rectified if `kind` is 1. Four elements a thread.
KERNEL(learn_normalise, Learn, 256) {
    const u32 at = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    const u32 area = p.height * p.width, channels = p.channels, all = p.images * channels * area;
    auto scaled = [&](float x, const float* scale) {
        const float y = (x - scale[0]) * scale[1] + scale[2];
        return p.kind ? rectified(y) : y;
    };
    if (area % 4 == 0) {
        if (at >= all) return;
        const float* scale = p.about + channels + 3 * (at / area % channels);
        float x[4];
        take<4>(x, p.src + at);
        *reinterpret_cast<float4*>(p.dst + at) = float4{scaled(x[0], scale), scaled(x[1], scale), scaled(x[2], scale), scaled(x[3], scale)};
        return;
    }
    for (u32 i = at; i < at + 4 && i < all; ++i) p.dst[i] = scaled(p.src[i], p.about + channels + 3 * (i / area % channels));
}

// Sums of the gradient, and of the gradient by the normalised value if there is a source, over a part of a channel.
KERNEL(learn_sums, Learn, 256) {
    SHARED(float, shared);
    const int area = p.height * p.width;
    const Part part = part_of(p, blockIdx.y);
    const int count = part.count * area;
    const float mean = p.src ? p.moments[blockIdx.x] : 0.0f, inverse = p.src ? p.about[blockIdx.x] : 0.0f;
    float sum = 0.0f, products = 0.0f;
    if (area % 4 == 0) {
        for (int i = 4 * threadIdx.x; i < count; i += 1024) {
            const u32 at = element_of(p, part, i, area);
            float gradient[4], x[4] = {};
            gradients_at(p, at, gradient);
            if (p.src) take<4>(x, p.src + at);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                sum += gradient[e];
                products += gradient[e] * (x[e] - mean);
            }
        }
    } else {
        for (int i = threadIdx.x; i < count; i += 256) {
            const u32 at = element_of(p, part, i, area);
            const float gradient = gradient_at(p, at);
            sum += gradient;
            if (p.src) products += gradient * (p.src[at] - mean);
        }
    }
    products *= inverse;
    total(shared, sum, products);
    if (threadIdx.x > 0) return;
    float* to = p.sums + 2 * (blockIdx.x * p.parts + blockIdx.y);
    to[0] = sum, to[1] = products;
}

// The sums over the parts: gradients of bias and weight, and their means for the source. A block a channel.
KERNEL(learn_sums_all, Learn, 64) {
    SHARED(double, shared);
    const int channel = blockIdx.x;
    const bool there = threadIdx.x < p.parts;
    const float* own = p.sums + 2 * (channel * p.parts + threadIdx.x);
    const double sum = total64(shared, there ? own[0] : 0.0f);
    const double products = total64(shared, there ? own[1] : 0.0f);
    if (threadIdx.x > 0) return;
    if (p.bias_dst) p.bias_dst[channel] = static_cast<float>(sum);
    if (p.weight_dst) p.weight_dst[channel] = static_cast<float>(products);
    if (!p.src) return;
    const double all = static_cast<double>(p.images) * p.height * p.width;
    float* means = p.about + 4 * p.channels + 2 * channel;
    means[0] = static_cast<float>(sum / all), means[1] = static_cast<float>(products / all);
}

// The gradient of what was normalised. Four elements a thread.
KERNEL(learn_normalised, Learn, 256) {
    const u32 at = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    const u32 area = p.height * p.width, channels = p.channels, all = p.images * channels * area;
    auto back = [&](u32 channel, float x, float gradient) {
        const float* scale = p.about + channels + 3 * channel;
        const float* means = p.about + 4 * channels + 2 * channel;
        return scale[1] * (gradient - means[0] - (x - scale[0]) * p.about[channel] * means[1]);
    };
    if (area % 4 == 0) {
        if (at >= all) return;
        const u32 channel = at / area % channels;
        float x[4], gradient[4];
        take<4>(x, p.src + at);
        gradients_at(p, at, gradient);
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = back(channel, x[e], gradient[e]);
        give4(p, at, x);
        return;
    }
    for (u32 i = at; i < at + 4 && i < all; ++i) give(p, i, back(i / area % channels, p.src[i], gradient_at(p, i)));
}

// Where an element of the source is: one thread each.
DEVICE Place source_of(const Learn& p) {
    Place of = place_at(p.images, p.channels, p.height, p.width);
    of.at = static_cast<long long>(of.image) * p.channels * p.height * p.width + of.in_image;
    return of;
}

// First of the windows that reach a place, and the number behind the last.
DEVICE int first_window(int place, int pad, int kernel, int stride) { return max((place + pad - kernel + stride) / stride, 0); }
DEVICE int behind_window(int place, int pad, int stride, int count) { return min((place + pad) / stride + 1, count); }

// Whether an element is the first of the largest in a window.
DEVICE bool is_largest(const Learn& p, const float* src, int top, int left, int row, int column) {
    const float value = src[row * p.width + column];
    for (int y = max(top, 0); y < min(top + p.kernel_h, p.height); ++y)
        for (int x = max(left, 0); x < min(left + p.kernel_w, p.width); ++x) {
            const float other = src[y * p.width + x];
            const bool before = y < row || (y == row && x < column);
            if (other > value || (before && other == value)) return false;
        }
    return true;
}

KERNEL(learn_pool, Learn, 256) {
    const Place of = source_of(p);
    if (!of.inside) return;
    const long long map = static_cast<long long>(of.image) * p.channels + of.channel;
    const float* grad = p.grad + map * p.rows * p.columns;
    float sum = 0.0f;
    for (int i = first_window(of.row, p.pad_h, p.kernel_h, p.stride_h); i < behind_window(of.row, p.pad_h, p.stride_h, p.rows); ++i)
        for (int j = first_window(of.column, p.pad_w, p.kernel_w, p.stride_w); j < behind_window(of.column, p.pad_w, p.stride_w, p.columns); ++j) {
            const int top = i * p.stride_h - p.pad_h, left = j * p.stride_w - p.pad_w;
            const float gradient = grad[i * p.columns + j];
            if (p.kind == 0) {
                if (is_largest(p, p.src + map * p.height * p.width, top, left, of.row, of.column)) sum += gradient;
                continue;
            }
            const int bottom = min(top + p.kernel_h, p.height + p.pad_h), right = min(left + p.kernel_w, p.width + p.pad_w);
            const int whole = (bottom - top) * (right - left);
            const int inside = (min(bottom, p.height) - max(top, 0)) * (min(right, p.width) - max(left, 0));
            sum += gradient / (p.kind == 2 ? whole : inside);
        }
    give(p, of.at, sum);
}

KERNEL(learn_adaptive, Learn, 256) {
    const Place of = source_of(p);
    if (!of.inside) return;
    const float* grad = p.grad + (static_cast<long long>(of.image) * p.channels + of.channel) * p.rows * p.columns;
    float sum = 0.0f;
    for (int i = of.row * p.rows / p.height; i < p.rows; ++i) {
        const int top = i * p.height / p.rows, bottom = ((i + 1) * p.height + p.rows - 1) / p.rows;
        if (top > of.row) break;
        if (bottom <= of.row) continue;
        for (int j = of.column * p.columns / p.width; j < p.columns; ++j) {
            const int left = j * p.width / p.columns, right = ((j + 1) * p.width + p.columns - 1) / p.columns;
            if (left > of.column) break;
            if (right <= of.column) continue;
            sum += grad[i * p.columns + j] / ((bottom - top) * (right - left));
        }
    }
    give(p, of.at, sum);
}

// `k + weight sum x^2` of the neighbourhood of an element.
DEVICE float lrn_base(const Learn& p, const float* image, int channel, int row, int column) {
    const int half = p.size / 2, area = p.height * p.width;
    float sum = 0.0f;
    if (p.kind == 0) {
        for (int c = max(channel - half, 0); c <= min(channel + half, p.channels - 1); ++c) {
            const float x = image[c * area + row * p.width + column];
            sum += x * x;
        }
    } else {
        for (int y = max(row - half, 0); y <= min(row + half, p.height - 1); ++y)
            for (int x = max(column - half, 0); x <= min(column + half, p.width - 1); ++x) {
                const float value = image[channel * area + y * p.width + x];
                sum += value * value;
            }
    }
    return p.k + p.weight * sum;
}

KERNEL(learn_lrn, Learn, 256) {
    const Place of = source_of(p);
    if (!of.inside) return;
    const int half = p.size / 2, area = p.height * p.width;
    const long long first = static_cast<long long>(of.image) * p.channels * area;
    const float* image = p.src + first;
    const float* grad = p.grad + first;
    // What the neighbour's result takes from this element by way of the sum of squares.
    auto share = [&](int channel, int row, int column) {
        const int at = channel * area + row * p.width + column;
        return grad[at] * image[at] * powf(lrn_base(p, image, channel, row, column), -p.beta - 1.0f);
    };
    float sum = 0.0f;
    if (p.kind == 0) {
        for (int c = max(of.channel - half, 0); c <= min(of.channel + half, p.channels - 1); ++c) sum += share(c, of.row, of.column);
    } else {
        for (int y = max(of.row - half, 0); y <= min(of.row + half, p.height - 1); ++y)
            for (int x = max(of.column - half, 0); x <= min(of.column + half, p.width - 1); ++x) sum += share(of.channel, y, x);
    }
    const float own = p.grad[of.at] * powf(lrn_base(p, image, of.channel, of.row, of.column), -p.beta);
    give(p, of.at, own - 2.0f * p.beta * p.weight * p.src[of.at] * sum);
}
