// A stand-in for the CUDA driver: the calls that the runtime makes, on a processor. What a stream is given runs when somebody waits
// for it and not before, memory is NaN until it is written and ends at a page that cannot be touched, what is not given back is
// counted, and any call can be made to fail.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

enum : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CAPTURE_WRONG = 901,
};

struct Index { unsigned x, y, z; };
using Launch = const char* (*)(void*, Index, Index, unsigned, bool, int);

// Something that a stream is to do, and the memory of the host that it reads or writes.
struct Work {
    std::function<int()> run;
    uint64_t host = 0;
};

struct Module {
    void* library;
    std::string file;
};

struct Function {
    Module* module;
    std::string name;
    Launch launch;
    size_t argument_len;
    int threads;
    int shared_limit = 48 * 1024;
};

struct Graph {
    std::vector<Work> work;
};

struct Stream {
    std::vector<Work> queue;
    Graph* capture = nullptr;
};

struct Event {
    std::chrono::steady_clock::time_point at;
    long long at_us = 0;
    bool recorded = false;
};

std::recursive_mutex all;
std::map<uint64_t, size_t> memory, host_memory;
std::set<Stream*> streams;
std::set<Event*> events;
std::set<Module*> modules;
std::set<Graph*> graphs;  // and those made ready to run
std::map<std::string, Function*> functions_alive;
std::vector<Function*> functions;
std::map<std::string, std::pair<int, int>> failures;  // the call: how many more go well, and what it returns from then on
std::map<std::string, int> calls;
size_t memory_limit = size_t{64} << 30, memory_used = 0;
int devices = 1, capability = 80, retained = 0;
bool backwards = false;
int deleted = 0;  // line of the text whose barrier is passed over; 0: none
int driver_version = 13000;
long long library_version = 90000;  // of the libraries that stand on this one
// What a library's work takes by a clock that counts a convolution of ours as 1000 us, parts or not, and any other kernel as 10; 0: time
// is what it is.
long long library_us = 0, clock_us = 0;
int lent = 0;   // handles and descriptors of theirs that are alive
int races = 0;  // memory of the host that was given back while work was under way
int broken = SUCCESS;  // after a failed launch every call fails alike
bool initialised = false;
thread_local bool current = false;

bool is_sticky(int code) { return code == LAUNCH_FAILED || code == 700 || code == 46 || code == 214 || code == 999; }

int failed(int code) {
    if (is_sticky(code)) broken = code;
    return code;
}

// What a call is to return at once, or 0.
int before(const char* name, bool needs_context = true) {
    ++calls[name];
    auto planned = failures.find(name);
    if (planned != failures.end()) {
        if (planned->second.first == 0) return failed(planned->second.second);
        --planned->second.first;
    }
    if (broken) return broken;
    if (needs_context && !initialised) return NOT_INITIALIZED;
    if (needs_context && !current) return INVALID_CONTEXT;
    return SUCCESS;
}

int flush(Stream* stream) {
    std::vector<Work> queue;
    std::swap(queue, stream->queue);
    for (Work& work : queue)
        if (int code = work.run()) return failed(code);
    return SUCCESS;
}

int flush_all() {
    for (Stream* stream : streams)
        if (int code = flush(stream)) return code;
    return SUCCESS;
}

int submit(Stream* stream, std::function<int()> run, uint64_t host = 0) {
    if (!streams.count(stream)) return INVALID_HANDLE;
    (stream->capture ? stream->capture->work : stream->queue).push_back({std::move(run), host});
    return SUCCESS;
}

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// Ends at a page that cannot be touched; every word is NaN.
void* guarded(size_t len) {
    const size_t body = (len + page() - 1) / page() * page();
    void* at = mmap(nullptr, body + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    char* first = static_cast<char*>(at);
    mprotect(first + body, page(), PROT_NONE);
    std::memset(first, 0xff, body);
    const size_t shift = body - (len + 15) / 16 * 16;  // as aligned as a vector of four
    return first + shift;
}

void unguard(uint64_t at, size_t len) {
    const size_t body = (len + page() - 1) / page() * page();
    munmap(reinterpret_cast<void*>(at / page() * page()), body + page());
}

// Whether all of it lies in one allocation.
bool inside(const std::map<uint64_t, size_t>& of, uint64_t at, size_t len) {
    auto next = of.upper_bound(at);
    if (next == of.begin()) return false;
    --next;
    return at + len <= next->first + next->second;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
#define BEGIN(name, needs_context)                   \
    std::lock_guard<std::recursive_mutex> lock(all); \
    if (int code = before(name, needs_context)) return code;

// For tests: what the stand-in is to do, and what it saw.
EXPORT void standin_fail(const char* call, int after, int code) {
    std::lock_guard<std::recursive_mutex> lock(all);
    failures[call] = {after, code};
}
EXPORT void standin_set(const char* what, long long value) {
    std::lock_guard<std::recursive_mutex> lock(all);
    const std::string name = what;
    if (name == "memory") memory_limit = static_cast<size_t>(value);
    if (name == "devices") devices = static_cast<int>(value);
    if (name == "capability") capability = static_cast<int>(value);
    if (name == "backwards") backwards = value != 0;
    if (name == "deleted") deleted = static_cast<int>(value);
    if (name == "driver") driver_version = static_cast<int>(value);
    if (name == "library") library_version = value;
    if (name == "library_us") library_us = value;
    if (name == "repair") broken = SUCCESS, failures.clear();
}
EXPORT long long standin_get(const char* what) {
    std::lock_guard<std::recursive_mutex> lock(all);
    const std::string name = what;
    if (name == "memory") return static_cast<long long>(memory_used);
    if (name == "races") return races;
    if (name == "live")
        return static_cast<long long>(memory.size() + host_memory.size() + streams.size() + events.size() + modules.size() + graphs.size()) +
               retained + lent;
    return calls[name];
}

// For the stand-ins of libraries: what a call of theirs is to return at once (-1 for what the driver would say), or 0.
EXPORT int standin_before(const char* call) {
    std::lock_guard<std::recursive_mutex> lock(all);
    auto planned = failures.find(call);
    const bool fails = planned != failures.end() && planned->second.first == 0;
    const int code = before(call);
    return code == SUCCESS || fails ? code : -1;
}
EXPORT long long standin_library_version() { return library_version; }
// Whether all of it lies in one allocation of the device's.
EXPORT int standin_inside(const void* at, size_t len) {
    std::lock_guard<std::recursive_mutex> lock(all);
    return inside(memory, reinterpret_cast<uint64_t>(at), len);
}
// Something is created (1) or given back (-1).
EXPORT void standin_lend(int change) {
    std::lock_guard<std::recursive_mutex> lock(all);
    lent += change;
}
// Something for a stream to do, now or, while it is captured, whenever the graph runs; `release` is called when nothing will run it again.
EXPORT int standin_submit(void* stream, int (*run)(void*), void* context, void (*release)(void*)) {
    std::lock_guard<std::recursive_mutex> lock(all);
    std::shared_ptr<void> shared(context, release);
    return submit(static_cast<Stream*>(stream), [=] { return clock_us += library_us, run(shared.get()); });
}

EXPORT int cuInit(unsigned) {
    BEGIN("cuInit", false)
    initialised = true;
    return devices > 0 ? SUCCESS : NO_DEVICE;
}
EXPORT int cuDriverGetVersion(int* version) {
    BEGIN("cuDriverGetVersion", false)
    *version = driver_version;
    return SUCCESS;
}
EXPORT int cuDeviceGetCount(int* count) {
    BEGIN("cuDeviceGetCount", false)
    *count = devices;
    return SUCCESS;
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
    BEGIN("cuDeviceGet", false)
    if (ordinal < 0 || ordinal >= devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}
EXPORT int cuDeviceGetName(char* name, int len, int) {
    BEGIN("cuDeviceGetName", false)
    std::snprintf(name, static_cast<size_t>(len), "stand-in on a processor");
    return SUCCESS;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    BEGIN("cuDeviceGetAttribute", false)
    switch (attribute) {
        case 16: *value = 8; break;                  // multiprocessors
        case 75: *value = capability / 10; break;    // compute capability
        case 76: *value = capability % 10; break;
        case 97: *value = 163 * 1024; break;         // shared memory of a block, on request
        default: *value = 0;
    }
    return SUCCESS;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
    BEGIN("cuDeviceTotalMem_v2", false)
    *bytes = memory_limit;
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
    BEGIN("cuDevicePrimaryCtxRetain", false)
    ++retained;
    *context = &retained;
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
    std::lock_guard<std::recursive_mutex> lock(all);
    return --retained < 0 ? INVALID_CONTEXT : SUCCESS;
}
EXPORT int cuCtxSetCurrent(void* context) {
    BEGIN("cuCtxSetCurrent", false)
    current = context != nullptr;
    return SUCCESS;
}
EXPORT int cuGetErrorName(int code, const char** name) {
    static const std::map<int, const char*> names = {
        {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"}, {46, "CUDA_ERROR_DEVICE_UNAVAILABLE"},
        {100, "CUDA_ERROR_NO_DEVICE"}, {101, "CUDA_ERROR_INVALID_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"},
        {214, "CUDA_ERROR_ECC_UNCORRECTABLE"}, {400, "CUDA_ERROR_INVALID_HANDLE"}, {500, "CUDA_ERROR_NOT_FOUND"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"}, {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
    auto found = names.find(code);
    *name = found == names.end() ? nullptr : found->second;
    return found == names.end() ? INVALID_VALUE : SUCCESS;
}
EXPORT int cuMemAlloc_v2(uint64_t* at, size_t len) {
    BEGIN("cuMemAlloc_v2", true)
    if (len == 0) return INVALID_VALUE;
    if (memory_used + len > memory_limit) return OUT_OF_MEMORY;
    void* found = guarded(len);
    if (!found) return OUT_OF_MEMORY;
    memory_used += len;
    *at = reinterpret_cast<uint64_t>(found);
    memory[*at] = len;
    return SUCCESS;
}
EXPORT int cuMemFree_v2(uint64_t at) {
    std::lock_guard<std::recursive_mutex> lock(all);
    auto found = memory.find(at);
    if (found == memory.end()) return INVALID_VALUE;
    flush_all();
    unguard(at, found->second);
    memory_used -= found->second;
    memory.erase(found);
    return broken;
}
EXPORT int cuMemHostAlloc(void** at, size_t len, unsigned) {
    BEGIN("cuMemHostAlloc", true)
    if (len == 0) return INVALID_VALUE;
    *at = guarded(len);
    if (!*at) return OUT_OF_MEMORY;
    host_memory[reinterpret_cast<uint64_t>(*at)] = len;
    return SUCCESS;
}
EXPORT int cuMemFreeHost(void* at) {
    std::lock_guard<std::recursive_mutex> lock(all);
    auto found = host_memory.find(reinterpret_cast<uint64_t>(at));
    if (found == host_memory.end()) return INVALID_VALUE;
    for (Stream* stream : streams)
        for (const Work& work : stream->queue) races += work.host >= found->first && work.host < found->first + found->second;
    unguard(found->first, found->second);
    host_memory.erase(found);
    return broken;
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t dst, const void* src, size_t len, Stream* stream) {
    BEGIN("cuMemcpyHtoDAsync_v2", true)
    if (!inside(memory, dst, len)) return INVALID_VALUE;
    // Memory of the driver's is read when the copy runs; other memory at once, as a driver may do either.
    if (inside(host_memory, reinterpret_cast<uint64_t>(src), len))
        return submit(stream, [=] { return std::memcpy(reinterpret_cast<void*>(dst), src, len), SUCCESS; }, reinterpret_cast<uint64_t>(src));
    std::string bytes(static_cast<const char*>(src), len);
    return submit(stream, [=] { return std::memcpy(reinterpret_cast<void*>(dst), bytes.data(), len), SUCCESS; });
}
EXPORT int cuMemcpyDtoHAsync_v2(void* dst, uint64_t src, size_t len, Stream* stream) {
    BEGIN("cuMemcpyDtoHAsync_v2", true)
    if (!inside(memory, src, len)) return INVALID_VALUE;
    return submit(stream, [=] { return std::memcpy(dst, reinterpret_cast<const void*>(src), len), SUCCESS; }, reinterpret_cast<uint64_t>(dst));
}
EXPORT int cuStreamCreate(Stream** stream, unsigned) {
    BEGIN("cuStreamCreate", true)
    streams.insert(*stream = new Stream);
    return SUCCESS;
}
EXPORT int cuStreamDestroy_v2(Stream* stream) {
    std::lock_guard<std::recursive_mutex> lock(all);
    if (!streams.count(stream)) return INVALID_HANDLE;
    flush(stream);
    streams.erase(stream);
    delete stream;
    return broken;
}
EXPORT int cuStreamSynchronize(Stream* stream) {
    BEGIN("cuStreamSynchronize", true)
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (stream->capture) return CAPTURE_WRONG;
    return flush(stream);
}
EXPORT int cuStreamBeginCapture_v2(Stream* stream, int) {
    BEGIN("cuStreamBeginCapture_v2", true)
    if (!streams.count(stream) || stream->capture) return INVALID_HANDLE;
    stream->capture = new Graph;
    return SUCCESS;
}
EXPORT int cuStreamEndCapture(Stream* stream, Graph** graph) {
    std::lock_guard<std::recursive_mutex> lock(all);
    if (!streams.count(stream) || !stream->capture) return INVALID_HANDLE;
    *graph = stream->capture;
    stream->capture = nullptr;
    const int code = before("cuStreamEndCapture");
    if (code) {
        delete *graph;
        *graph = nullptr;
        return code;
    }
    graphs.insert(*graph);
    return SUCCESS;
}
EXPORT int cuGraphInstantiateWithFlags(Graph** ready, Graph* graph, unsigned long long) {
    BEGIN("cuGraphInstantiateWithFlags", true)
    if (!graphs.count(graph)) return INVALID_HANDLE;
    graphs.insert(*ready = new Graph(*graph));
    return SUCCESS;
}
EXPORT int cuGraphLaunch(Graph* ready, Stream* stream) {
    BEGIN("cuGraphLaunch", true)
    if (!graphs.count(ready) || !streams.count(stream)) return INVALID_HANDLE;
    for (const Work& work : ready->work)
        if (int code = submit(stream, work.run, work.host)) return code;
    return SUCCESS;
}
static int destroy_graph(Graph* graph) {
    std::lock_guard<std::recursive_mutex> lock(all);
    if (!graphs.erase(graph)) return INVALID_HANDLE;
    delete graph;
    return broken;
}
EXPORT int cuGraphExecDestroy(Graph* ready) { return destroy_graph(ready); }
EXPORT int cuGraphDestroy(Graph* graph) { return destroy_graph(graph); }
EXPORT int cuEventCreate(Event** event, unsigned) {
    BEGIN("cuEventCreate", true)
    events.insert(*event = new Event);
    return SUCCESS;
}
EXPORT int cuEventDestroy_v2(Event* event) {
    std::lock_guard<std::recursive_mutex> lock(all);
    flush_all();
    if (!events.erase(event)) return INVALID_HANDLE;
    delete event;
    return broken;
}
EXPORT int cuEventRecord(Event* event, Stream* stream) {
    BEGIN("cuEventRecord", true)
    if (!events.count(event)) return INVALID_HANDLE;
    return submit(stream, [=] {
        event->at = std::chrono::steady_clock::now();
        event->at_us = clock_us;
        event->recorded = true;
        return static_cast<int>(SUCCESS);
    });
}
EXPORT int cuEventElapsedTime(float* ms, Event* from, Event* to) {
    BEGIN("cuEventElapsedTime", true)
    if (!events.count(from) || !events.count(to)) return INVALID_HANDLE;
    if (!from->recorded || !to->recorded) return INVALID_VALUE;
    *ms = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    if (library_us) *ms = static_cast<float>(to->at_us - from->at_us) / 1000.0f;
    return SUCCESS;
}
EXPORT int cuModuleLoadData(Module** module, const void* image) {
    BEGIN("cuModuleLoadData", true)
    Elf64_Ehdr header;
    std::memcpy(&header, image, sizeof header);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return INVALID_IMAGE;
    const size_t len = header.e_shoff + size_t{header.e_shentsize} * header.e_shnum;
    char name[] = "/tmp/standin-XXXXXX";
    const int file = mkstemp(name);
    if (file < 0) return OUT_OF_MEMORY;
    const bool written = write(file, image, len) == static_cast<ssize_t>(len);
    close(file);
    void* library = written ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) std::fprintf(stderr, "stand-in: %s\n", written ? dlerror() : "a module could not be written");
    unlink(name);
    if (!library) return INVALID_IMAGE;
    modules.insert(*module = new Module{library, name});
    return SUCCESS;
}
EXPORT int cuModuleUnload(Module* module) {
    std::lock_guard<std::recursive_mutex> lock(all);
    if (!modules.count(module)) return INVALID_HANDLE;
    flush_all();
    for (Function*& function : functions)
        if (function && function->module == module) delete function, function = nullptr;
    dlclose(module->library);
    modules.erase(module);
    delete module;
    return broken;
}
EXPORT int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    BEGIN("cuModuleGetFunction", true)
    if (!modules.count(module)) return INVALID_HANDLE;
    auto symbol = [&](const char* prefix) { return dlsym(module->library, (std::string(prefix) + name).c_str()); };
    void* launch = symbol("launch_");
    if (!launch) return NOT_FOUND;
    const size_t len = *static_cast<const size_t*>(symbol("size_"));
    const int threads = *static_cast<const int*>(symbol("threads_"));
    functions.push_back(*function = new Function{module, name, reinterpret_cast<Launch>(launch), len, threads});
    return SUCCESS;
}
EXPORT int cuFuncSetAttribute(Function* function, int attribute, int value) {
    BEGIN("cuFuncSetAttribute", true)
    if (attribute != 8 || value > 163 * 1024) return INVALID_VALUE;  // most dynamic shared memory
    function->shared_limit = value;
    return SUCCESS;
}
EXPORT int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                          Stream* stream, void** arguments, void**) {
    BEGIN("cuLaunchKernel", true)
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !bx || by != 1 || bz != 1) return INVALID_VALUE;
    if (static_cast<int>(bx) != function->threads || static_cast<int>(shared_bytes) > function->shared_limit) return INVALID_VALUE;
    // Aligned as the struct of the kernel is.
    std::vector<uint64_t> copy(function->argument_len / 8 + 1);
    std::memcpy(copy.data(), arguments[0], function->argument_len);
    return submit(stream, [=]() mutable {
        clock_us += function->name == "conv_sum" ? 0 : function->name.rfind("conv", 0) == 0 ? 1000 : 10;
        const char* wrong = function->launch(copy.data(), {gx, gy, gz}, {bx, by, bz}, shared_bytes, backwards, deleted);
        if (wrong) std::fprintf(stderr, "stand-in: %s: %s\n", function->name.c_str(), wrong);
        return wrong ? static_cast<int>(LAUNCH_FAILED) : static_cast<int>(SUCCESS);
    });
}
