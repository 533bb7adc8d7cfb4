#include "runtime/backends.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "runtime/library.h"

namespace sde::backends {
namespace {

namespace fs = std::filesystem;

// In the order in which "auto" prefers them, with what a user needs to know about each.
struct Accelerator {
    const char* kind;
    const char* needs;    // for its library to load and find a device
    const char* install;  // where the library comes from
};
constexpr std::array<Accelerator, 3> kAccelerators{{
    {"cuda",
     "it needs an NVIDIA card, its driver (580 or newer for CUDA 13) and the packages "
     "nvidia-cublas and nvidia-cuda-runtime",
     "pip install sdengine-cuda13, or build sdengine with -DSDENGINE_CUDA=ON"},
    {"metal", "it needs a Mac with Apple silicon", "it comes with sdengine on macOS"},
    {"vulkan",
     "it needs the Vulkan loader (libvulkan1 on Debian and Ubuntu, vulkan-loader elsewhere) and "
     "the card's Vulkan driver (mesa-vulkan-drivers, or its maker's)",
     "pip install sdengine-vulkan, or build sdengine with -DSDENGINE_VULKAN=ON"},
}};

// Keeps ggml's last complaint: its loading functions say only that they failed.
class LogCapture {
  public:
    LogCapture() {
        ggml_log_get(&callback_, &data_);
        ggml_log_set(keep, this);
    }
    ~LogCapture() { ggml_log_set(callback_, data_); }
    LogCapture(const LogCapture&) = delete;
    LogCapture& operator=(const LogCapture&) = delete;

    // The complaint about one library, without the function's name and the path before it.
    std::string reason(const std::string& path) const {
        // What a backend's start gives when its loader is there and no driver is.
        if (line_.find("returned NULL") != std::string::npos) return "no driver answered";
        const size_t at = line_.find(path + ": ");
        return at == std::string::npos ? line_ : line_.substr(at + path.size() + 2);
    }

  private:
    static void keep(ggml_log_level level, const char* text, void* data) {
        if (level != GGML_LOG_LEVEL_ERROR) return;
        std::string& line = static_cast<LogCapture*>(data)->line_;
        line = text;
        while (!line.empty() && line.back() == '\n') line.pop_back();
    }

    ggml_log_callback callback_ = nullptr;
    void* data_ = nullptr;
    std::string line_;
};

fs::path library_name(const std::string& kind) {
#ifdef _WIN32
    return "ggml-" + kind + ".dll";
#else
    return "libggml-" + kind + ".so";
#endif
}

DeviceEntry describe(ggml_backend_dev_t device, const std::string& kind, const std::string& name) {
    const enum ggml_backend_dev_type type = ggml_backend_dev_type(device);
    return {name, kind, ggml_backend_dev_description(device),
            type == GGML_BACKEND_DEVICE_TYPE_IGPU || type == GGML_BACKEND_DEVICE_TYPE_CPU, device};
}

std::string join(const std::vector<std::string>& parts, const char* between) {
    std::string all;
    for (const std::string& part : parts) all += (all.empty() ? "" : between) + part;
    return all;
}

// The process has one registry of backends, because ggml has: modules are loaded once and stay.
class Registry {
  public:
    Registry() {
        const fs::path folder = library_folder();
        if (!folder.empty()) roots_.push_back(folder / "backends");
#ifdef SDENGINE_BUILT_BACKENDS
        roots_.push_back(from_utf8(SDENGINE_BUILT_BACKENDS));
#endif
    }

    void add_root(const fs::path& root) {
        const std::lock_guard lock(mutex_);
        if (std::find(roots_.begin(), roots_.end(), root) == roots_.end()) roots_.push_back(root);
    }

    DeviceEntry cpu() {
        const std::lock_guard lock(mutex_);
        return load_cpu();
    }

    std::vector<DeviceEntry> devices() {
        const std::lock_guard lock(mutex_);
        std::vector<DeviceEntry> all;
        for (const Accelerator& accelerator : kAccelerators) load(accelerator);
        for (const Accelerator& accelerator : kAccelerators)
            for (const DeviceEntry& entry : accelerators_)
                if (entry.kind == accelerator.kind) all.push_back(entry);
        all.push_back(load_cpu());
        return all;
    }

    std::vector<Failure> failures() {
        const std::lock_guard lock(mutex_);
        return failures_;
    }

  private:
    const DeviceEntry& load_cpu() {
        for (size_t i = 0; !cpu_ && i < roots_.size(); ++i) {
            const fs::path folder = roots_[i] / "cpu";
            std::error_code missing;
            if (!fs::is_directory(folder, missing)) continue;
            // ggml asks each library in the folder how well it fits this processor.
            const LogCapture log;
            ggml_backend_load_all_from_path(to_utf8(folder).c_str());
            if (ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU))
                cpu_ = describe(device, "cpu", "cpu");
        }
        if (!cpu_) throw Error(ErrorKind::Device, why_no_cpu());
        return *cpu_;
    }

    std::string why_no_cpu() const {
        std::vector<std::string> tried;
        for (const fs::path& root : roots_) {
            std::error_code missing;
            for (const auto& file : fs::directory_iterator(root / "cpu", missing)) {
                const LogCapture log;
                const std::string path = to_utf8(file.path());
                if (!ggml_backend_load(path.c_str()))
                    tried.push_back(path + ": " + log.reason(path));
            }
        }
        std::vector<std::string> folders;
        for (const fs::path& root : roots_) folders.push_back(to_utf8(root / "cpu"));
        return "the CPU backend could not be loaded: " +
               (tried.empty() ? "there is no library in " + join(folders, " or ")
                              : join(tried, "; ")) +
               ". Install sdengine again";
    }

    // Tries each root that was not tried for this kind yet, until one brings devices.
    void load(const Accelerator& accelerator) {
        const std::string kind = accelerator.kind;
        for (const fs::path& root : roots_) {
            const fs::path path = root / kind / library_name(kind);
            std::error_code missing;
            const bool have = std::any_of(accelerators_.begin(), accelerators_.end(),
                                          [&](const DeviceEntry& e) { return e.kind == kind; });
            if (have || !fs::exists(path, missing)) continue;
            if (std::find(tried_.begin(), tried_.end(), path) != tried_.end()) continue;
            tried_.push_back(path);
            const std::string reason = load_library(kind, to_utf8(path));
            if (!reason.empty())
                failures_.push_back({kind, to_utf8(path), reason, accelerator.needs});
        }
    }

    // Adds the devices of one library; says why when there are none.
    std::string load_library(const std::string& kind, const std::string& path) {
        const LogCapture log;
        try {
            ggml_backend_reg_t registry = ggml_backend_load(path.c_str());
            if (!registry) {
                const std::string reason = log.reason(path);
                return reason.empty() ? "the system refused to load it" : reason;
            }
            const size_t count = ggml_backend_reg_dev_count(registry);
            for (size_t i = 0; i < count; ++i) {
                const bool only = kind == "metal" && count == 1;
                accelerators_.push_back(describe(ggml_backend_reg_dev_get(registry, i), kind,
                                                 only ? kind : kind + ":" + std::to_string(i)));
            }
            if (count > 0) return "";
        } catch (const std::exception& error) {
            return error.what();
        }
        const std::string reason = log.reason(path);
        return reason.empty() ? "it found no device" : reason;
    }

    std::mutex mutex_;
    std::vector<fs::path> roots_;
    std::vector<fs::path> tried_;
    std::optional<DeviceEntry> cpu_;
    std::vector<DeviceEntry> accelerators_;
    std::vector<Failure> failures_;
};

Registry& registry() {
    static Registry one;
    return one;
}

// What is wrong with the kind of device that was asked for.
std::string missing(const std::string& kind) {
    for (const Accelerator& accelerator : kAccelerators) {
        if (kind != accelerator.kind) continue;
        std::vector<std::string> reasons;
        for (const Failure& failure : failures())
            if (failure.kind == kind) reasons.push_back(failure.library + ": " + failure.reason);
        if (reasons.empty())
            return " The " + kind + " backend is not installed: " + accelerator.install + ".";
        return " The " + kind + " backend could not be used (" + join(reasons, "; ") +
               "): " + accelerator.needs + ".";
    }
    return " Kinds of devices are cpu, cuda, metal and vulkan.";
}

}  // namespace

void add_root(const std::string& folder) {
    registry().add_root(from_utf8(folder));
}

DeviceEntry cpu() {
    return registry().cpu();
}

std::vector<DeviceEntry> devices() {
    return registry().devices();
}

std::vector<Failure> failures() {
    return registry().failures();
}

DeviceEntry find(const std::string& name) {
    if (name == "cpu") return cpu();
    const size_t colon = name.find(':');
    const std::string kind = name.substr(0, colon);
    std::vector<std::string> names;
    bool have = false;
    for (const DeviceEntry& entry : devices()) {
        // "cuda" is "cuda:0", and "metal:0" is "metal".
        if (entry.name == name || entry.name == name + ":0" || entry.name + ":0" == name)
            return entry;
        names.push_back(entry.name);
        have = have || entry.kind == kind;
    }
    throw Error(ErrorKind::Device, "there is no device \"" + name + "\"; this machine has " +
                                       join(names, ", ") + "." + (have ? "" : missing(kind)));
}

Memory memory(const DeviceEntry& device) {
    Memory memory;
    ggml_backend_dev_memory(device.handle, &memory.free, &memory.total);
    return memory;
}

const CpuFunctions& cpu_functions() {
    static const CpuFunctions functions = [] {
        ggml_backend_reg_t cpu_registry = ggml_backend_dev_backend_reg(cpu().handle);
        CpuFunctions found{};
        const auto get = [&](auto& function, const char* name) {
            void* address = ggml_backend_reg_get_proc_address(cpu_registry, name);
            if (!address)
                throw Error(ErrorKind::Device, std::string("the CPU backend lacks ") + name);
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
        };
        get(found.set_n_threads, "ggml_backend_set_n_threads");
        get(found.set_abort_callback, "ggml_backend_set_abort_callback");
        get(found.set_threadpool, "ggml_backend_cpu_set_threadpool");
        get(found.threadpool_new, "ggml_threadpool_new");
        get(found.threadpool_free, "ggml_threadpool_free");
        return found;
    }();
    return functions;
}

}  // namespace sde::backends
