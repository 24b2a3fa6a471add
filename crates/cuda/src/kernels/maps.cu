// Everything that looks at each element, or at a few around it: one thread an element of the result, image by image.

struct Map {
    const float* src;
    const float* add;  // or null
    float* dst;
    const float* scale;  // of batch normalisation: mean, factor and shift of each channel; or null
    int images, channels;
    int height, width;    // of the source
    int rows, columns;    // of the result
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int src_image, dst_image, add_image;
    int before;  // channels of zeros before the source's
    int kind;    // of pooling: 0 the largest, 1 the mean, 2 the mean with the padding; of normalisation: 0 across channels, 1 within
    int size;    // of normalisation
    int relu;
    float weight, beta, k;  // of normalisation
};
static_assert(sizeof(Map) == 120, "as the host has it");

struct Place {
    int image, channel, row, column;
    u32 in_image;
    long long at;  // in the result
    bool inside;
};

// Of a thread, in maps that lie one after the other. All that there is to count is below 2^31.
DEVICE Place place_at(int images, u32 channels, u32 rows, u32 columns) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x, map = at / (rows * columns), place = at - map * (rows * columns);
    Place of;
    of.image = map / channels;
    of.inside = of.image < images;
    of.channel = map - of.image * channels;
    of.row = place / columns;
    of.column = place - of.row * columns;
    of.in_image = of.channel * (rows * columns) + place;
    return of;
}

DEVICE Place place_of(const Map& p) {
    Place of = place_at(p.images, p.channels, p.rows, p.columns);
    of.at = static_cast<long long>(of.image) * p.dst_image + of.in_image;
    return of;
}

DEVICE const float* channel_of(const Map& p, const Place& of, int channel) {
    return p.src + static_cast<long long>(of.image) * p.src_image + channel * p.height * p.width;
}

DEVICE float finished(const Map& p, const Place& of, float x) {
    if (p.add) x += p.add[of.at + static_cast<long long>(of.image) * (p.add_image - p.dst_image)];
    return p.relu ? rectified(x) : x;
}

// Channels of zeros, the source's channels, channels of zeros; with a summand, and rectified.
KERNEL(map_copy, Map, 256) {
    const Place of = place_of(p);
    if (!of.inside) return;
    const int channel = of.channel - p.before;
    // `size` is the number of channels of the source.
    const bool there = channel >= 0 && channel < p.size;
    const float x = there ? channel_of(p, of, channel)[of.row * p.width + of.column] : 0.0f;
    p.dst[of.at] = finished(p, of, x);
}

KERNEL(map_normalise, Map, 256) {
    const Place of = place_of(p);
    if (!of.inside) return;
    const float* scale = p.scale + 3 * of.channel;
    const float x = channel_of(p, of, of.channel)[of.row * p.width + of.column];
    p.dst[of.at] = finished(p, of, (x - scale[0]) * scale[1] + scale[2]);
}

KERNEL(map_pool, Map, 256) {
    const Place of = place_of(p);
    if (!of.inside) return;
    const float* src = channel_of(p, of, of.channel);
    const int top = of.row * p.stride_h - p.pad_h, left = of.column * p.stride_w - p.pad_w;
    const int bottom = min(top + p.kernel_h, p.height + p.pad_h), right = min(left + p.kernel_w, p.width + p.pad_w);
    float most = -__int_as_float(0x7f800000), sum = 0.0f;
    int count = 0;
    for (int y = max(top, 0); y < min(bottom, p.height); ++y)
        for (int x = max(left, 0); x < min(right, p.width); ++x) {
            const float value = src[y * p.width + x];
            if (value > most || value != value) most = value;
            sum += value;
            ++count;
        }
    if (p.kind == 2) count = (bottom - top) * (right - left);
    p.dst[of.at] = p.kind == 0 ? most : sum / count;
}

// The mean over rows floor(i h / n) .. ceil((i + 1) h / n), columns alike.
KERNEL(map_adaptive, Map, 256) {
    const Place of = place_of(p);
    if (!of.inside) return;
    const float* src = channel_of(p, of, of.channel);
    const int top = of.row * p.height / p.rows, bottom = ((of.row + 1) * p.height + p.rows - 1) / p.rows;
    const int left = of.column * p.width / p.columns, right = ((of.column + 1) * p.width + p.columns - 1) / p.columns;
    float sum = 0.0f;
    for (int y = top; y < bottom; ++y)
        for (int x = left; x < right; ++x) sum += src[y * p.width + x];
    p.dst[of.at] = sum / ((bottom - top) * (right - left));
}

KERNEL(map_lrn, Map, 256) {
    const Place of = place_of(p);
    if (!of.inside) return;
    const int half = p.size / 2, area = p.height * p.width, at = of.row * p.width + of.column;
    float sum = 0.0f;
    if (p.kind == 0) {
        for (int c = max(of.channel - half, 0); c <= min(of.channel + half, p.channels - 1); ++c) {
            const float x = channel_of(p, of, 0)[c * area + at];
            sum += x * x;
        }
    } else {
        const float* src = channel_of(p, of, of.channel);
        for (int y = max(of.row - half, 0); y <= min(of.row + half, p.height - 1); ++y)
            for (int x = max(of.column - half, 0); x <= min(of.column + half, p.width - 1); ++x) sum += src[y * p.width + x] * src[y * p.width + x];
    }
    const float base = p.k + p.weight * sum;
    const float root = sqrtf(base);
    const float power = p.beta == 0.75f ? root * sqrtf(root) : p.beta == 0.5f ? root : powf(base, p.beta);
    p.dst[of.at] = channel_of(p, of, of.channel)[at] / power;
}

// A block an image: `channels` elements.
KERNEL(softmax, Map, 128) {
    SHARED(float, shared);
    const float* src = p.src + static_cast<long long>(blockIdx.x) * p.src_image;
    float* dst = p.dst + static_cast<long long>(blockIdx.x) * p.dst_image;
    float most = -__int_as_float(0x7f800000);
    for (int i = threadIdx.x; i < p.channels; i += 128) most = fmaxf(most, src[i]);
    shared[threadIdx.x] = most;
    __syncthreads();
    for (int i = 0; i < 128; ++i) most = fmaxf(most, shared[i]);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.channels; i += 128) sum += expf(src[i] - most);
    __syncthreads();
    shared[threadIdx.x] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < 128; ++i) sum += shared[i];
    for (int i = threadIdx.x; i < p.channels; i += 128) dst[i] = expf(src[i] - most) / sum;
}
