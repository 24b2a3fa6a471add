// A stand-in for cuDNN: the calls that are made, as loops over the memory of the stand-in for the driver, in the order of the stream.
// Arguments that the headers of cuDNN 9 do not allow are refused, and so is a workspace that is too small; what is in the workspace
// is gone after every call. Which algorithms there are for what is as cuDNN's documentation has it, more or less.
#include "library.h"
#include <algorithm>

namespace {

enum : int {
    SUCCESS = 0,
    BAD_PARAM = 2000,
    NULL_POINTER = 2002,
    TOO_SMALL = 2006,
    SHAPES = 2008,
    NOT_SUPPORTED = 3000,
    INTERNAL_ERROR = 4000,
};
enum : int { IMPLICIT_GEMM = 0, PRECOMP_GEMM = 1, GEMM = 2, WINOGRAD = 6, WINOGRAD_NONFUSED = 7 };
enum : int { TENSOR_OP_MATH = 1, FMA_MATH = 3 };

struct Context { void* stream = nullptr; };
struct Tensor { int n = 0, c = 0, h = 0, w = 0, of_n = 0, of_c = 0, of_h = 0; };
struct Filter { int k = 0, c = 0, h = 0, w = 0; };
struct Window { int pad[2] = {}, stride[2] = {}, dilation[2] = {}, groups = 1, math = 0; };

Alive<Context> contexts;
Alive<Tensor> tensors;
Alive<Filter> filters;
Alive<Window> windows;

struct Forward {
    Tensor x, y;
    Filter f;
    Window of;
    const float *from, *weights;
    float* to;
    void* workspace;
    size_t workspace_len;

    // Sums in the same order for every number of images.
    void run() const {
        std::memset(workspace, 0xff, workspace_len);
        const bool rounds = of.math == TENSOR_OP_MATH;
        const int per_group = f.k / of.groups;
        for (int n = 0; n < x.n; ++n)
            for (int k = 0; k < f.k; ++k)
                for (int row = 0; row < y.h; ++row) {
                    float* sums = to + int64_t{n} * y.of_n + int64_t{k} * y.of_c + int64_t{row} * y.of_h;
                    for (int column = 0; column < y.w; ++column) sums[column] = 0;
                    for (int c = 0; c < f.c; ++c)
                        for (int u = 0; u < f.h; ++u) {
                            const int in = row * of.stride[0] - of.pad[0] + u * of.dilation[0];
                            if (in < 0 || in >= x.h) continue;
                            const int64_t channel = k / per_group * f.c + c;
                            const float* source = from + int64_t{n} * x.of_n + channel * x.of_c + int64_t{in} * x.of_h;
                            for (int v = 0; v < f.w; ++v) {
                                const float weight = weights[((int64_t{k} * f.c + c) * f.h + u) * f.w + v];
                                const int shift = v * of.dilation[1] - of.pad[1];
                                const int step = of.stride[1];
                                const int first = shift < 0 ? (step - 1 - shift) / step : 0;
                                const int end = shift < x.w ? std::min(y.w, (x.w - 1 - shift) / step + 1) : 0;
                                if (rounds)
                                    for (int i = first; i < end; ++i) sums[i] += tf32(weight) * tf32(source[i * step + shift]);
                                else if (step == 1)
                                    for (int i = first; i < end; ++i) sums[i] += weight * source[i + shift];
                                else
                                    for (int i = first; i < end; ++i) sums[i] += weight * source[i * step + shift];
                            }
                        }
                }
    }
};

int wrong(int code) { return code < 0 ? static_cast<int>(INTERNAL_ERROR) : code; }

bool is_set(const Tensor* of) { return tensors.has(of) && of->n > 0; }

// Bytes of an algorithm, or a refusal.
int workspace(const Tensor* x, const Filter* f, const Window* of, const Tensor* y, int algorithm, size_t* bytes) {
    if (!is_set(x) || !is_set(y) || !filters.has(f) || !f->k || !windows.has(of) || !of->stride[0]) return BAD_PARAM;
    if (x->c != f->c * of->groups || y->c != f->k || f->k % of->groups || x->n != y->n) return SHAPES;
    const int in[2] = {x->h, x->w}, kernel[2] = {f->h, f->w}, out[2] = {y->h, y->w};
    for (int axis = 0; axis < 2; ++axis)
        if (out[axis] != (in[axis] + 2 * of->pad[axis] - of->dilation[axis] * (kernel[axis] - 1) - 1) / of->stride[axis] + 1) return SHAPES;
    const bool plain = of->stride[0] == 1 && of->stride[1] == 1 && of->dilation[0] == 1 && of->dilation[1] == 1 && of->groups == 1;
    const size_t columns = size_t(f->c) * f->h * f->w, pixels = size_t(y->n) * y->h * y->w;
    const bool three = f->h == 3 && f->w == 3, five = f->h == 5 && f->w == 5;
    switch (algorithm) {
        case IMPLICIT_GEMM: *bytes = 0; return SUCCESS;
        case PRECOMP_GEMM: *bytes = 4 * columns; return SUCCESS;
        case GEMM: *bytes = 4 * columns * pixels; return of->groups == 1 ? SUCCESS : NOT_SUPPORTED;
        case WINOGRAD: *bytes = 4 * 16 * size_t(f->k) * f->c; return plain && three && of->math == FMA_MATH ? SUCCESS : NOT_SUPPORTED;
        case WINOGRAD_NONFUSED:
            *bytes = 4 * 36 * (size_t(f->k) * f->c + pixels / 16 * f->c);
            return plain && (three || five) ? SUCCESS : NOT_SUPPORTED;
        default: return NOT_SUPPORTED;
    }
}

// The last element of a batch, and one.
size_t span(const Tensor& of) { return size_t(of.n - 1) * of.of_n + size_t(of.c - 1) * of.of_c + size_t(of.h - 1) * of.of_h + of.w; }

}  // namespace

#define BEGIN(name) \
    if (int code = driver::before(name)) return wrong(code);

EXPORT size_t cudnnGetVersion() { return driver::version(); }
EXPORT size_t cudnnGetCudartVersion() { return 13000; }
EXPORT const char* cudnnGetErrorString(int code) {
    switch (code / 1000) {
        case 2: return "CUDNN_STATUS_BAD_PARAM";
        case 3: return "CUDNN_STATUS_NOT_SUPPORTED";
        case 5: return "CUDNN_STATUS_EXECUTION_FAILED";
        default: return "CUDNN_STATUS_INTERNAL_ERROR";
    }
}
EXPORT int cudnnCreate(Context** context) {
    BEGIN("cudnnCreate")
    if (!context) return NULL_POINTER;
    *context = contexts.make();
    return SUCCESS;
}
EXPORT int cudnnDestroy(Context* context) { return contexts.destroy(context) ? SUCCESS : BAD_PARAM; }
EXPORT int cudnnSetStream(Context* context, void* stream) {
    BEGIN("cudnnSetStream")
    if (!contexts.has(context)) return BAD_PARAM;
    context->stream = stream;
    return SUCCESS;
}
EXPORT int cudnnCreateTensorDescriptor(Tensor** of) {
    BEGIN("cudnnCreateTensorDescriptor")
    *of = tensors.make();
    return SUCCESS;
}
EXPORT int cudnnSetTensor4dDescriptorEx(Tensor* of, int type, int n, int c, int h, int w, int of_n, int of_c, int of_h, int of_w) {
    BEGIN("cudnnSetTensor4dDescriptorEx")
    if (!tensors.has(of) || type != 0 || n < 1 || c < 1 || h < 1 || w < 1) return BAD_PARAM;
    if (of_w != 1 || of_h < w || of_c < h * of_h || of_n < c * of_c) return BAD_PARAM;
    *of = {n, c, h, w, of_n, of_c, of_h};
    return SUCCESS;
}
EXPORT int cudnnDestroyTensorDescriptor(Tensor* of) { return tensors.destroy(of) ? SUCCESS : BAD_PARAM; }
EXPORT int cudnnCreateFilterDescriptor(Filter** of) {
    BEGIN("cudnnCreateFilterDescriptor")
    *of = filters.make();
    return SUCCESS;
}
EXPORT int cudnnSetFilter4dDescriptor(Filter* of, int type, int format, int k, int c, int h, int w) {
    BEGIN("cudnnSetFilter4dDescriptor")
    if (!filters.has(of) || type != 0 || format != 0 || k < 1 || c < 1 || h < 1 || w < 1) return BAD_PARAM;
    *of = {k, c, h, w};
    return SUCCESS;
}
EXPORT int cudnnDestroyFilterDescriptor(Filter* of) { return filters.destroy(of) ? SUCCESS : BAD_PARAM; }
EXPORT int cudnnCreateConvolutionDescriptor(Window** of) {
    BEGIN("cudnnCreateConvolutionDescriptor")
    *of = windows.make();
    return SUCCESS;
}
EXPORT int cudnnSetConvolution2dDescriptor(Window* of, int pad_h, int pad_w, int u, int v, int dilation_h, int dilation_w, int mode,
                                           int type) {
    BEGIN("cudnnSetConvolution2dDescriptor")
    if (!windows.has(of) || pad_h < 0 || pad_w < 0 || u < 1 || v < 1 || dilation_h < 1 || dilation_w < 1) return BAD_PARAM;
    if (mode != 1 || type != 0) return BAD_PARAM;
    *of = {{pad_h, pad_w}, {u, v}, {dilation_h, dilation_w}, of->groups, of->math};
    return SUCCESS;
}
EXPORT int cudnnSetConvolutionGroupCount(Window* of, int groups) {
    BEGIN("cudnnSetConvolutionGroupCount")
    if (!windows.has(of) || groups < 1) return BAD_PARAM;
    of->groups = groups;
    return SUCCESS;
}
EXPORT int cudnnSetConvolutionMathType(Window* of, int math) {
    BEGIN("cudnnSetConvolutionMathType")
    if (!windows.has(of) || math < 0 || math > 3) return BAD_PARAM;
    of->math = math;
    return SUCCESS;
}
EXPORT int cudnnDestroyConvolutionDescriptor(Window* of) { return windows.destroy(of) ? SUCCESS : BAD_PARAM; }
EXPORT int cudnnGetConvolutionForwardWorkspaceSize(Context* context, Tensor* x, Filter* f, Window* of, Tensor* y, int algorithm,
                                                   size_t* bytes) {
    BEGIN("cudnnGetConvolutionForwardWorkspaceSize")
    if (!contexts.has(context)) return BAD_PARAM;
    if (!bytes) return NULL_POINTER;
    return workspace(x, f, of, y, algorithm, bytes);
}
EXPORT int cudnnConvolutionForward(Context* context, const float* alpha, Tensor* x, const float* from, Filter* f, const float* weights,
                                   Window* of, int algorithm, void* memory, size_t len, const float* beta, Tensor* y, float* to) {
    BEGIN("cudnnConvolutionForward")
    if (!contexts.has(context) || !context->stream) return BAD_PARAM;
    if (!alpha || !beta || !from || !weights || !to) return NULL_POINTER;
    if (*alpha != 1.0f || *beta != 0.0f) return NOT_SUPPORTED;
    size_t needed = 0;
    if (int code = workspace(x, f, of, y, algorithm, &needed)) return code;
    if (needed > len || (needed && !driver::inside(memory, len))) return TOO_SMALL;
    const size_t all = size_t(f->k) * f->c * f->h * f->w;
    if (!driver::inside(from, 4 * span(*x)) || !driver::inside(to, 4 * span(*y)) || !driver::inside(weights, 4 * all)) return BAD_PARAM;
    const Forward work{*x, *y, *f, *of, from, weights, to, memory, needed};
    return driver::submit(context->stream, work) ? INTERNAL_ERROR : SUCCESS;
}
