// What the stand-ins for cuDNN and cuBLASLt share: the hooks of the stand-in for the driver, which is loaded before them.
#pragma once
#include <dlfcn.h>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace driver {

template <typename Function>
Function* hook(const char* name) {
    static void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    void* found = library ? dlsym(library, name) : nullptr;
    if (!found) std::abort();
    return reinterpret_cast<Function*>(found);
}

inline int before(const char* call) {
    static auto* of = hook<int(const char*)>("standin_before");
    return of(call);
}
inline size_t version() {
    static auto* of = hook<long long()>("standin_library_version");
    return static_cast<size_t>(of());
}
inline bool inside(const void* at, size_t len) {
    static auto* of = hook<int(const void*, size_t)>("standin_inside");
    return of(at, len) != 0;
}
inline void lend(int change) {
    static auto* of = hook<void(int)>("standin_lend");
    of(change);
}

// Copies what is to be done, and does it when the stream comes to it.
template <typename Work>
int submit(void* stream, const Work& work) {
    static auto* of = hook<int(void*, int (*)(void*), void*, void (*)(void*))>("standin_submit");
    const auto run = [](void* work) { return static_cast<Work*>(work)->run(), 0; };
    const auto release = [](void* work) { delete static_cast<Work*>(work); };
    return of(stream, run, new Work(work), release);
}

}  // namespace driver

// Things of one kind that are alive; whatever is used has to be among them.
template <typename T>
struct Alive {
    mutable std::mutex lock;
    std::set<const void*> all;
    T* make() {
        T* made = new T;
        std::lock_guard<std::mutex> locked(lock);
        all.insert(made);
        driver::lend(1);
        return made;
    }
    bool has(const void* of) const {
        std::lock_guard<std::mutex> locked(lock);
        return all.count(of) != 0;
    }
    bool destroy(T* of) {
        std::lock_guard<std::mutex> locked(lock);
        if (!all.erase(of)) return false;
        delete of;
        driver::lend(-1);
        return true;
    }
};

// A number with 10 bits behind the point, as tensor cores take it.
inline float tf32(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isfinite(x)) bits = (bits + 0x1000) & ~uint32_t{0x1fff};
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}
inline float bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isfinite(x)) bits = (bits + 0x7fff + (bits >> 16 & 1)) & ~uint32_t{0xffff};
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}
