// A stand-in for NVRTC: the C++ compiler of the machine, with `on_cpu.h` before the text. What it gives is a shared library, which
// the stand-in for the driver loads.
#include <sys/wait.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#ifndef STANDIN
#error "STANDIN is the folder of on_cpu.h"
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))

struct Program {
    std::string text, binary, log;
};

static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

EXPORT int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
EXPORT const char* nvrtcGetErrorString(int code) { return code == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
EXPORT int nvrtcCreateProgram(Program** program, const char* text, const char*, int, const char* const*, const char* const*) {
    *program = new Program{text, {}, {}};
    return 0;
}
EXPORT int nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return 0;
}
EXPORT int nvrtcCompileProgram(Program* program, int, const char* const*) {
    char folder[] = "/tmp/standin-XXXXXX";
    if (!mkdtemp(folder)) return 2;
    const std::string at = folder, source = at + "/kernels.cu", library = at + "/kernels.so", log = at + "/log";
    std::ofstream(source) << program->text;
    const char* compiler = std::getenv("CXX");
    const std::string command = std::string(compiler ? compiler : "c++") +
                                " -std=c++17 -O2 -fPIC -shared -pthread -x c++ -DCOFILTER_ON_CPU -Wno-unknown-pragmas -include " STANDIN "/on_cpu.h " +
                                (STANDIN_FLAGS) + " " + source + " -o " + library + " 2> " + log;
    const int status = std::system(command.c_str());
    program->log = read(log);
    program->binary = read(library);
    for (const std::string& file : {source, library, log}) unlink(file.c_str());
    rmdir(folder);
    return status == 0 ? 0 : 6;
}
EXPORT int nvrtcGetCUBINSize(Program* program, size_t* len) { return *len = program->binary.size(), 0; }
EXPORT int nvrtcGetCUBIN(Program* program, char* bytes) { return std::memcpy(bytes, program->binary.data(), program->binary.size()), 0; }
EXPORT int nvrtcGetProgramLogSize(Program* program, size_t* len) { return *len = program->log.size() + 1, 0; }
EXPORT int nvrtcGetProgramLog(Program* program, char* text) { return std::memcpy(text, program->log.c_str(), program->log.size() + 1), 0; }
EXPORT int nvrtcGetNumSupportedArchs(int* count) { return *count = 3, 0; }
EXPORT int nvrtcGetSupportedArchs(int* archs) { return archs[0] = 75, archs[1] = 80, archs[2] = 90, 0; }
