#include "runtime/device.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/error.h"
#include "ggml-backend-impl.h"
#include "runtime/common_operators.h"
#include "runtime/failing.h"

#ifdef _WIN32
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

#ifdef __linux__
#include <sched.h>
#endif

namespace sde {

int physical_cores() {
    const int logical = std::max(1u, std::thread::hardware_concurrency());
#ifdef __linux__
    // Hyper-threads of one core share its arithmetic units, and kernels here keep those busy: count
    // each core once.
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return logical;
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                           "/topology/thread_siblings_list");
        std::string siblings;
        cores.insert(std::getline(file, siblings) ? siblings : std::to_string(cpu));
    }
    return std::max<int>(1, static_cast<int>(cores.size()));
#else
    return logical;
#endif
}

// A buffer type of the CPU that says it is no host memory: nobody may touch its values, and two
// devices do not share one.
struct Device::OwnMemory {
    ggml_backend_buffer_type type = *ggml_backend_cpu_buffer_type();
    OwnMemory() { type.iface.is_host = nullptr; }
};

std::shared_ptr<Device> Device::cpu(int threads, bool portable) {
    std::shared_ptr<Device> device(new Device);
    device->name_ = portable ? "cpu:portable" : "cpu";
    device->runs_custom_ = !portable;
    device->start_cpu(threads);
    if (portable) {
        device->own_memory_ = std::make_unique<OwnMemory>();
        device->buffer_type_ = &device->own_memory_->type;
    } else {
        device->buffer_type_ = ggml_backend_cpu_buffer_type();
    }
    return device;
}

std::shared_ptr<Device> Device::foreign(ggml_backend_dev_t of, const std::string& name) {
    std::shared_ptr<Device> device(new Device);
    device->name_ = name;
    device->runs_custom_ = false;
    device->process_ = getpid();
    device->backend_ = ggml_backend_dev_init(of, nullptr);
    if (!device->backend_)
        throw Error(ErrorKind::Device, "the device '" + name + "' could not be started");
    device->buffer_type_ = ggml_backend_dev_buffer_type(of);
    device->staging_type_ = ggml_backend_dev_host_buffer_type(of);
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(of, &props);
    device->copies_beside_ = device->staging_type_ && props.caps.async && props.caps.events;
    return device;
}

std::shared_ptr<Device> Device::open(const std::string& name, int threads) {
    if (name == "cpu:portable") return cpu(threads, true);
    const backends::DeviceEntry entry = backends::find(name);
    return entry.kind == "cpu" ? cpu(threads) : foreign(entry.handle, entry.name);
}

void Device::start_cpu(int threads) {
    // More threads than processors only wait for each other.
    const int most = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u,
                                                 static_cast<unsigned>(GGML_MAX_N_THREADS)));
    threads_ = threads > 0 ? std::min(threads, most) : physical_cores();
    process_ = getpid();
    cpu_ = &backends::cpu_functions();
    backend_ = ggml_backend_dev_init(backends::cpu().handle, nullptr);
    if (!backend_) throw Error(ErrorKind::Device, "the CPU backend could not be started");
    // One pool for the life of the device: no thread is started per graph.
    ggml_threadpool_params params = ggml_threadpool_params_default(threads_);
    // Between graphs the threads look for more to do for a few milliseconds (131072 rounds) and
    // then sleep: they would otherwise spin on cores that Python or another pipeline needs.
    params.poll = 1;
    threadpool_ = cpu_->threadpool_new(&params);
    if (!threadpool_)
        throw Error(ErrorKind::Device,
                    std::to_string(threads_) + " CPU threads could not be started");
    cpu_->set_n_threads(backend_, threads_);
    cpu_->set_threadpool(backend_, threadpool_);
}

Device::~Device() {
    if (copier_) ggml_backend_free(copier_);
    if (backend_) ggml_backend_free(backend_);
    if (threadpool_) cpu_->threadpool_free(threadpool_);
}

bool Device::supports(const ggml_tensor* node) const {
    if (node->op == GGML_OP_CUSTOM && !runs_custom_) return false;
    // The CPU as a foreign device stands for all of them.
    if (own_memory_ && !is_common_operator(node)) return false;
    return ggml_backend_dev_supports_op(ggml_backend_get_device(backend_), node);
}

ggml_backend_t Device::copier() {
    if (!copier_ && copies_beside_)
        copier_ = ggml_backend_dev_init(ggml_backend_get_device(backend_), nullptr);
    return copier_;
}

Device::Memory Device::memory() const {
    Memory memory;
    ggml_backend_dev_memory(ggml_backend_get_device(backend_), &memory.free, &memory.total);
#ifdef __linux__
    if (!threadpool_) return memory;
    // For the CPU ggml calls all memory free.
    std::ifstream file("/proc/meminfo");
    for (std::string line; std::getline(file, line);)
        if (size_t kilobytes; std::sscanf(line.c_str(), "MemAvailable: %zu kB", &kilobytes) == 1)
            memory.free = std::min(memory.total, kilobytes * 1024);
#endif
    return memory;
}

bool computes_nothing(const ggml_tensor& node) {
    return node.op == GGML_OP_NONE || node.op == GGML_OP_VIEW || node.op == GGML_OP_RESHAPE ||
           node.op == GGML_OP_PERMUTE || node.op == GGML_OP_TRANSPOSE;
}

class Device::Turn {
  public:
    Turn(Device& device, int threads) : lock_(device.mutex_) {
        if (device.process_ != getpid())
            throw Error(ErrorKind::Device,
                        "the model was loaded before this process was forked, and its threads "
                        "stayed behind; load it in the child process");
        if (device.threadpool_)
            device.cpu_->set_n_threads(device.backend_, std::clamp(threads, 1, device.threads_));
    }

  private:
    std::lock_guard<std::mutex> lock_;
};

namespace {

// Set while a backend other than the CPU's is handed a graph in this thread, with no lock of ggml's
// own held and no thread of it waiting.
thread_local bool is_guarded = false;

// What ggml calls before it ends the process.
void on_abort(const char* message) {
    if (is_guarded) {
        const bool is_memory = std::strstr(message, "out of memory") != nullptr;
        throw Error(is_memory ? ErrorKind::OutOfMemory : ErrorKind::Device,
                    std::string("the device failed in the middle of a graph: ") + message);
    }
    std::fprintf(stderr, "%s\n", message);
}

// A backend that is left in the middle of its work is not freed: that would wait for what was never
// submitted. Buffers belong to the device and stay.
void replace_backend(ggml_backend_t& backend) {
    if (ggml_backend_t fresh = ggml_backend_dev_init(ggml_backend_get_device(backend), nullptr))
        backend = fresh;
}

struct Guard {
    Guard() { is_guarded = true; }
    ~Guard() { is_guarded = false; }
};

// Hands a graph to a backend. What it throws, and where ggml gives up, becomes an Error: CUDA's
// backend gives up when its pool cannot grow and holds nothing then; Vulkan's throws, and is not
// fit for use afterwards: `replace` makes another.
template <class Work, class Replace>
auto guarded(const std::string& device, Work work, Replace replace) {
    [[maybe_unused]] static const auto before = ggml_set_abort_callback(on_abort);
    const Guard guard;
    try {
        return work();
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        replace();
        const bool is_memory = std::strstr(error.what(), "OutOf") != nullptr;
        throw Error(is_memory ? ErrorKind::OutOfMemory : ErrorKind::Device,
                    "the device '" + device + "' failed in the middle of a graph: " + error.what());
    }
}

}  // namespace

namespace testing {

void fail_in_graph(bool by_abort, const std::string& message) {
    const auto fail = [&]() -> int {
        if (!by_abort) throw std::runtime_error(message);
        GGML_ABORT("%s", message.c_str());
    };
    guarded("test", fail, [] {});
}

}  // namespace testing

void Device::compute(ggml_cgraph* graph, int threads, const CancelCheck& cancel) {
    const Turn turn(*this, threads);
    run(graph, cancel);
}

void Device::compute_each(ggml_cgraph* graph, int threads, const CancelCheck& cancel,
                          const Record& record) {
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
        ggml_init({ggml_graph_overhead_custom(1, false), nullptr, true}), ggml_free);
    if (!context) throw Error(ErrorKind::OutOfMemory, "no memory for a graph's description");
    ggml_cgraph* one = ggml_new_graph_custom(context.get(), 1, false);
    const Turn turn(*this, threads);
    using Clock = std::chrono::steady_clock;
    using Seconds = std::chrono::duration<double>;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor* node = ggml_graph_node(graph, i);
        if (computes_nothing(*node)) continue;
        ggml_graph_clear(one);
        ggml_graph_add_node(one, node);
        const Clock::time_point begin = Clock::now();
        run(one, cancel);
        record(*node, Seconds(begin.time_since_epoch()).count(),
               Seconds(Clock::now() - begin).count());
    }
}

void Device::begin(ggml_cgraph* graph, int threads, const CancelCheck& cancel) {
    if (threadpool_) return compute(graph, threads, cancel);
    const Turn turn(*this, threads);
    if (cancel && cancel()) throw Error(ErrorKind::Cancelled, "the run was cancelled");
    check(guarded(
        name_, [&] { return ggml_backend_graph_compute_async(backend_, graph); },
        [&] { replace_backend(backend_); }));
}

void Device::wait() {
    if (!threadpool_) ggml_backend_synchronize(backend_);
}

void Device::settle() noexcept {
    try {
        wait();
    } catch (const std::exception&) {
        // A lost device: the evaluation that lost it has said so, or the next one will.
    }
}

void Device::run(ggml_cgraph* graph, const CancelCheck& cancel) {
    if (!threadpool_) {
        if (cancel && cancel()) throw Error(ErrorKind::Cancelled, "the run was cancelled");
        return check(guarded(
            name_, [&] { return ggml_backend_graph_compute(backend_, graph); },
            [&] { replace_backend(backend_); }));
    }
    auto ask = [](void* data) { return (*static_cast<const CancelCheck*>(data))(); };
    if (cancel) cpu_->set_abort_callback(backend_, ask, const_cast<CancelCheck*>(&cancel));
    const ggml_status status = ggml_backend_graph_compute(backend_, graph);
    cpu_->set_abort_callback(backend_, nullptr, nullptr);
    check(status);
}

void Device::check(ggml_status status) const {
    if (status == GGML_STATUS_ABORTED) throw Error(ErrorKind::Cancelled, "the run was cancelled");
    if (status == GGML_STATUS_ALLOC_FAILED)
        throw Error(ErrorKind::OutOfMemory,
                    "the device '" + name_ + "' could not allocate its work buffer");
    if (status != GGML_STATUS_SUCCESS)
        throw Error(ErrorKind::Device, "the device '" + name_ + "' failed to run a graph");
}

}  // namespace sde
