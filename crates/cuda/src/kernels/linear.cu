// Fully connected layers of few images: a warp an output.

struct Linear {
    const float* src;
    const void* weights;  // [output, input]
    const float* bias;    // or null
    float* dst;
    int images, inputs, outputs;
    int src_image, dst_image;
    int relu;
};
static_assert(sizeof(Linear) == 56, "as the host has it");

DEVICE float weight_at(const float* w, int i) { return w[i]; }

template <int KIND>
struct Halves {
    const u16* at;
};

DEVICE float weight_at(Halves<F16> w, int i) { return from_f16(w.at[i]); }
DEVICE float weight_at(Halves<BF16> w, int i) { return from_bf16(w.at[i]); }

// Blocks: eight images, four outputs: those that read the same weights run at the same time.
template <class Weights>
DEVICE void linear(const Linear& p, Weights row, int output) {
    constexpr int IMAGES = 8;
    const int lane = threadIdx.x % 32, first = blockIdx.x * IMAGES;
    const int images = min(IMAGES, p.images - first);
    float acc[IMAGES] = {};
    if (output < p.outputs) {
        for (int i = lane; i < p.inputs; i += 32) {
            const float w = weight_at(row, i);
#pragma unroll
            for (int n = 0; n < IMAGES; ++n)
                if (n < images) acc[n] += w * p.src[static_cast<long long>(first + n) * p.src_image + i];
        }
    }
#pragma unroll
    for (int n = 0; n < IMAGES; ++n) {
        float sum = acc[n];
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (output < p.outputs && n < images && lane == 0) {
            if (p.bias) sum += p.bias[output];
            if (p.relu) sum = rectified(sum);
            p.dst[static_cast<long long>(first + n) * p.dst_image + output] = sum;
        }
    }
}

DEVICE int output_of_warp() { return blockIdx.y * 4 + threadIdx.x / 32; }

KERNEL(linear_f32, Linear, 128) {
    const int output = output_of_warp();
    linear(p, static_cast<const float*>(p.weights) + static_cast<long long>(output) * p.inputs, output);
}

KERNEL(linear_f16, Linear, 128) {
    const int output = output_of_warp();
    linear(p, Halves<F16>{static_cast<const u16*>(p.weights) + static_cast<long long>(output) * p.inputs}, output);
}

KERNEL(linear_bf16, Linear, 128) {
    const int output = output_of_warp();
    linear(p, Halves<BF16>{static_cast<const u16*>(p.weights) + static_cast<long long>(output) * p.inputs}, output);
}
