// A stand-in for cuBLASLt: the calls that are made, as loops over the memory of the stand-in for the driver, in the order of the stream.
// Arguments that `cublasLt.h` does not allow are refused, and so is a workspace that is too small; what is in the workspace is gone
// after every call.
#include "library.h"
#include <algorithm>
#include <vector>

namespace {

enum : int { SUCCESS = 0, INVALID_VALUE = 7, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum : int { COMPUTE_32F = 68, FAST_16F = 74, FAST_16BF = 75, FAST_TF32 = 77 };

struct Context {};
struct Operation { int compute = 0; int32_t transposed[2] = {0, 0}; };
struct Layout { uint64_t rows = 0, columns = 0; int64_t leading = 0; int32_t count = 1; int64_t offset = 0; };
struct Wish { uint64_t workspace = 0; uint32_t alignment[4] = {256, 256, 256, 256}; };
struct Algorithm { uint64_t data[8]; };
struct Result {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
constexpr uint64_t MARK = 0x616c676f;

Alive<Context> contexts;
Alive<Operation> operations;
Alive<Layout> layouts;
Alive<Wish> wishes;

struct Product {
    Operation of;
    Layout a, b, d;
    const float *at_a, *at_b;
    float* at_d;
    uint64_t depth;
    void* workspace;
    size_t workspace_len;

    float rounded(float x) const { return of.compute == COMPUTE_32F ? x : of.compute == FAST_16BF ? bf16(x) : tf32(x); }

    // Sums in the same order for every number of columns and of products.
    void run() const {
        std::memset(workspace, 0xff, workspace_len);
        std::vector<float> left(d.rows * depth), right(depth * d.columns);
        for (int32_t i = 0; i < d.count; ++i) {
            const auto at = [&](const float* of, const Layout& in, bool turned, uint64_t row, uint64_t column) {
                if (turned) std::swap(row, column);
                return rounded(of[i * in.offset + static_cast<int64_t>(column) * in.leading + static_cast<int64_t>(row)]);
            };
            for (uint64_t k = 0; k < depth; ++k) {
                for (uint64_t row = 0; row < d.rows; ++row) left[k * d.rows + row] = at(at_a, a, of.transposed[0], row, k);
                for (uint64_t column = 0; column < d.columns; ++column)
                    right[column * depth + k] = at(at_b, b, of.transposed[1], k, column);
            }
            for (uint64_t column = 0; column < d.columns; ++column) {
                float* sums = at_d + i * d.offset + static_cast<int64_t>(column) * d.leading;
                std::fill(sums, sums + d.rows, 0.0f);
                for (uint64_t k = 0; k < depth; ++k)
                    for (uint64_t row = 0; row < d.rows; ++row) sums[row] += left[k * d.rows + row] * right[column * depth + k];
            }
        }
    }
};

int wrong(int code) { return code < 0 ? static_cast<int>(INTERNAL_ERROR) : code; }

// Whether the shapes go together.
bool fit(const Operation* of, const Layout* a, const Layout* b, const Layout* c, const Layout* d) {
    if (!operations.has(of) || !layouts.has(a) || !layouts.has(b) || !layouts.has(c) || !layouts.has(d)) return false;
    const uint64_t rows = of->transposed[0] ? a->columns : a->rows, depth = of->transposed[0] ? a->rows : a->columns;
    const uint64_t inner = of->transposed[1] ? b->columns : b->rows, columns = of->transposed[1] ? b->rows : b->columns;
    const bool shapes = rows == d->rows && columns == d->columns && depth == inner && c->rows == d->rows && c->columns == d->columns;
    const bool counts = a->count == d->count && b->count == d->count && c->count == d->count;
    return shapes && counts && (d->count == 1 || d->offset != 0);
}

// As for sums of parts.
size_t needed(const Operation& of, const Layout& d, uint64_t depth) {
    return of.compute == COMPUTE_32F ? 0 : depth >= 64 ? 8 * d.rows * d.columns * static_cast<size_t>(d.count) : 256;
}

size_t span(const Layout& of) {
    return static_cast<size_t>((of.count - 1) * of.offset + static_cast<int64_t>(of.columns - 1) * of.leading) + of.rows;
}

template <typename T>
int assign(T& to, const void* value, size_t len) {
    if (!value || len != sizeof to) return INVALID_VALUE;
    std::memcpy(&to, value, len);
    return SUCCESS;
}

}  // namespace

#define BEGIN(name) \
    if (int code = driver::before(name)) return wrong(code);

EXPORT size_t cublasLtGetVersion() { return driver::version(); }
EXPORT size_t cublasLtGetCudartVersion() { return 13000; }
EXPORT const char* cublasLtGetStatusName(int code) {
    switch (code) {
        case 3: return "CUBLAS_STATUS_ALLOC_FAILED";
        case 7: return "CUBLAS_STATUS_INVALID_VALUE";
        case 13: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case 15: return "CUBLAS_STATUS_NOT_SUPPORTED";
        default: return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}
EXPORT int cublasLtCreate(Context** context) {
    BEGIN("cublasLtCreate")
    *context = contexts.make();
    return SUCCESS;
}
EXPORT int cublasLtDestroy(Context* context) { return contexts.destroy(context) ? SUCCESS : INVALID_VALUE; }
EXPORT int cublasLtMatmulDescCreate(Operation** of, int compute, int scale) {
    BEGIN("cublasLtMatmulDescCreate")
    if (scale != 0 || (compute != COMPUTE_32F && compute != FAST_TF32 && compute != FAST_16F && compute != FAST_16BF)) return INVALID_VALUE;
    *of = operations.make();
    (*of)->compute = compute;
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescSetAttribute(Operation* of, int attribute, const void* value, size_t len) {
    BEGIN("cublasLtMatmulDescSetAttribute")
    if (!operations.has(of) || (attribute != 3 && attribute != 4)) return INVALID_VALUE;
    return assign(of->transposed[attribute - 3], value, len);
}
EXPORT int cublasLtMatmulDescDestroy(Operation* of) { return operations.destroy(of) ? SUCCESS : INVALID_VALUE; }
EXPORT int cublasLtMatrixLayoutCreate(Layout** of, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    BEGIN("cublasLtMatrixLayoutCreate")
    if (type != 0 || !rows || !columns || leading < static_cast<int64_t>(rows)) return INVALID_VALUE;
    *of = layouts.make();
    **of = {rows, columns, leading, 1, 0};
    return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutSetAttribute(Layout* of, int attribute, const void* value, size_t len) {
    BEGIN("cublasLtMatrixLayoutSetAttribute")
    if (!layouts.has(of)) return INVALID_VALUE;
    if (attribute == 5) return assign(of->count, value, len);
    return attribute == 6 ? assign(of->offset, value, len) : INVALID_VALUE;
}
EXPORT int cublasLtMatrixLayoutDestroy(Layout* of) { return layouts.destroy(of) ? SUCCESS : INVALID_VALUE; }
EXPORT int cublasLtMatmulPreferenceCreate(Wish** of) {
    BEGIN("cublasLtMatmulPreferenceCreate")
    *of = wishes.make();
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(Wish* of, int attribute, const void* value, size_t len) {
    BEGIN("cublasLtMatmulPreferenceSetAttribute")
    if (!wishes.has(of)) return INVALID_VALUE;
    if (attribute == 1) return assign(of->workspace, value, len);
    return attribute >= 5 && attribute <= 8 ? assign(of->alignment[attribute - 5], value, len) : INVALID_VALUE;
}
EXPORT int cublasLtMatmulPreferenceDestroy(Wish* of) { return wishes.destroy(of) ? SUCCESS : INVALID_VALUE; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(Context* context, Operation* of, Layout* a, Layout* b, Layout* c, Layout* d, Wish* wish,
                                          int asked, Result* results, int* count) {
    BEGIN("cublasLtMatmulAlgoGetHeuristic")
    if (!contexts.has(context) || !wishes.has(wish) || asked < 1 || !results || !count) return INVALID_VALUE;
    *count = 0;
    if (!fit(of, a, b, c, d)) return INVALID_VALUE;
    const size_t bytes = needed(*of, *d, of->transposed[0] ? a->rows : a->columns);
    if (bytes > wish->workspace) return NOT_SUPPORTED;
    results[0] = {{{MARK, wish->alignment[0], wish->alignment[3]}}, bytes, SUCCESS, 1.0f, {}};
    *count = 1;
    return SUCCESS;
}
EXPORT int cublasLtMatmul(Context* context, Operation* of, const float* alpha, const float* at_a, Layout* a, const float* at_b, Layout* b,
                          const float* beta, const float* at_c, Layout* c, float* at_d, Layout* d, const Algorithm* algorithm,
                          void* workspace, size_t len, void* stream) {
    BEGIN("cublasLtMatmul")
    if (!contexts.has(context) || !fit(of, a, b, c, d) || !alpha || !beta || !stream) return INVALID_VALUE;
    if (!algorithm || algorithm->data[0] != MARK) return INVALID_VALUE;
    if (*alpha != 1.0f || *beta != 0.0f || at_c != at_d) return INVALID_VALUE;
    const uint64_t depth = of->transposed[0] ? a->rows : a->columns, alignment = algorithm->data[1];
    const auto aligned = [&](const void* at) { return reinterpret_cast<uint64_t>(at) % alignment == 0; };
    if (!aligned(at_a) || !aligned(at_b) || !aligned(at_d)) return INVALID_VALUE;
    const size_t bytes = needed(*of, *d, depth);
    if (bytes > len || (bytes && !driver::inside(workspace, len))) return INVALID_VALUE;
    const auto is_there = [](const float* at, const Layout& of) { return driver::inside(at, 4 * span(of)); };
    if (!is_there(at_a, *a) || !is_there(at_b, *b) || !is_there(at_d, *d)) return INVALID_VALUE;
    const Product work{*of, *a, *b, *d, at_a, at_b, at_d, depth, workspace, bytes};
    return driver::submit(stream, work) ? INTERNAL_ERROR : SUCCESS;
}
