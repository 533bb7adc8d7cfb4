// ggml's backends: loaded at run time from the package's folders, and the devices that they bring.
//
// A root folder holds one folder per backend: <root>/cpu/libggml-cpu*.so,
// <root>/vulkan/libggml-vulkan.so, ... The roots are the package's own `backends` folder, those of
// plugin packages (`add_root`), and in a build tree that of the build. The working directory is
// never searched.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "ggml-backend.h"

namespace sde::backends {

// A device by the name that users give: "cpu", "cuda:0", "vulkan:0", "metal".
struct DeviceEntry {
    std::string name;
    std::string kind;  // "cpu", "cuda", "vulkan", "metal", ...
    std::string description;
    bool integrated = false;  // shares the host's memory
    ggml_backend_dev_t handle = nullptr;
};

// A backend's library that is there and cannot be used, and why.
struct Failure {
    std::string kind;
    std::string library;
    std::string reason;
    std::string needs;  // to load and find a device
};

// Another folder of backends. Its libraries are loaded when they are first needed.
void add_root(const std::string& folder);

// The CPU's entry. Loads the CPU backend only: the best for this processor of those there are.
// Throws Device when there is none.
DeviceEntry cpu();

// Every device of every backend that loads, the CPU last. Loads all backends once.
std::vector<DeviceEntry> devices();

// Libraries that `devices` found and could not load, or that have no device.
std::vector<Failure> failures();

// The device of that name; throws Device with what there is and what is missing otherwise.
DeviceEntry find(const std::string& name);

// Free and total bytes of a device, 0 where it does not tell.
struct Memory {
    size_t free = 0;
    size_t total = 0;
};
Memory memory(const DeviceEntry& device);

// What is not part of every backend's interface, reached by name because the CPU backend is a
// loaded module like the others.
struct CpuFunctions {
    void (*set_n_threads)(ggml_backend_t, int);
    void (*set_abort_callback)(ggml_backend_t, ggml_abort_callback, void*);
    void (*set_threadpool)(ggml_backend_t, ggml_threadpool_t);
    ggml_threadpool_t (*threadpool_new)(ggml_threadpool_params*);
    void (*threadpool_free)(ggml_threadpool_t);
};
const CpuFunctions& cpu_functions();

}  // namespace sde::backends
