// What all kernels stand on. COFILTER_ON_CPU is defined where the same text runs on a processor: then `KERNEL`, `SHARED` and
// everything below that is written in PTX here comes from elsewhere.
//
// A kernel takes one struct by value. Pointers may be null where a comment says so. All maps are [image, channel, row, column],
// f32, the elements of an image without gaps; the distance between two images is given.

typedef unsigned int u32;
typedef unsigned short u16;

// Of a convolution's result and of what is added to it.
enum Math { F32 = 0, TF32 = 1, F16 = 2, BF16 = 3 };

#ifndef COFILTER_ON_CPU

#define DEVICE static __device__ __forceinline__
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Args p)
extern __shared__ __align__(16) unsigned char shared_memory[];
#define SHARED(type, name) type* name = reinterpret_cast<type*>(shared_memory)

// The nearest number with 10 bits behind the point, as a word of a tensor core.
DEVICE u32 to_tf32(float x) {
    u32 word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
    return word;
}

// Two numbers in one word, the first in the lower half.
DEVICE u32 to_f16x2(float low, float high) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

DEVICE u32 to_bf16x2(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

DEVICE float from_f16(u16 bits) {
    float x;
    asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(x) : "h"(bits));
    return x;
}

// d += a b for 16 rows of a, 8 columns of b and 8 words of both; the shares of a lane are as PTX lays them out.
template <int MATH>
DEVICE void mma(float d[4], const u32 a[4], const u32 b[2]) {
    if constexpr (MATH == TF32) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else if constexpr (MATH == F16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

#endif

DEVICE float from_bf16(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }

// NaN stays NaN.
DEVICE float rectified(float x) { return x < 0.0f ? 0.0f : x; }

// V elements at a multiple of V elements, in one access.
template <int V>
DEVICE void take(float* dst, const float* src) {
    if constexpr (V == 4) {
        const float4 x = *reinterpret_cast<const float4*>(src);
        dst[0] = x.x, dst[1] = x.y, dst[2] = x.z, dst[3] = x.w;
    } else if constexpr (V == 2) {
        const float2 x = *reinterpret_cast<const float2*>(src);
        dst[0] = x.x, dst[1] = x.y;
    } else {
        dst[0] = src[0];
    }
}
