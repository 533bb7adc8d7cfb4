#include "runtime/device.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include "base/error.h"

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

std::shared_ptr<Device> Device::cpu(int threads) {
    std::shared_ptr<Device> device(new Device);
    // More threads than processors only wait for each other.
    const int most = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u,
                                                 static_cast<unsigned>(GGML_MAX_N_THREADS)));
    device->threads_ = threads > 0 ? std::min(threads, most) : physical_cores();
    device->process_ = getpid();
    device->backend_ = ggml_backend_cpu_init();
    if (!device->backend_) throw Error(ErrorKind::Device, "the CPU backend could not be started");
    // One pool for the life of the device: no thread is started per graph.
    ggml_threadpool_params params = ggml_threadpool_params_default(device->threads_);
    device->threadpool_ = ggml_threadpool_new(&params);
    if (!device->threadpool_)
        throw Error(ErrorKind::Device,
                    std::to_string(device->threads_) + " CPU threads could not be started");
    ggml_backend_cpu_set_n_threads(device->backend_, device->threads_);
    ggml_backend_cpu_set_threadpool(device->backend_, device->threadpool_);
    ggml_threadpool_pause(device->threadpool_);
    return device;
}

Device::~Device() {
    if (backend_) ggml_backend_free(backend_);
    if (threadpool_) ggml_threadpool_free(threadpool_);
}

namespace {

bool computes_nothing(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE ||
           op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

}  // namespace

class Device::Turn {
  public:
    Turn(Device& device, int threads) : device_(device), lock_(device.mutex_) {
        if (device.process_ != getpid())
            throw Error(ErrorKind::Device,
                        "the model was loaded before this process was forked, and its threads "
                        "stayed behind; load it in the child process");
        ggml_backend_cpu_set_n_threads(device.backend_, std::clamp(threads, 1, device.threads_));
    }
    // Between graphs the threads sleep: they would otherwise spin on cores that Python or another
    // pipeline needs.
    ~Turn() { ggml_threadpool_pause(device_.threadpool_); }

  private:
    Device& device_;
    std::lock_guard<std::mutex> lock_;
};

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
        if (computes_nothing(node->op)) continue;
        ggml_graph_clear(one);
        ggml_graph_add_node(one, node);
        const Clock::time_point begin = Clock::now();
        run(one, cancel);
        record(*node, Seconds(begin.time_since_epoch()).count(),
               Seconds(Clock::now() - begin).count());
    }
}

void Device::run(ggml_cgraph* graph, const CancelCheck& cancel) {
    auto ask = [](void* data) { return (*static_cast<const CancelCheck*>(data))(); };
    if (cancel)
        ggml_backend_cpu_set_abort_callback(backend_, ask, const_cast<CancelCheck*>(&cancel));
    const ggml_status status = ggml_backend_graph_compute(backend_, graph);
    ggml_backend_cpu_set_abort_callback(backend_, nullptr, nullptr);
    if (status == GGML_STATUS_ABORTED) throw Error(ErrorKind::Cancelled, "the run was cancelled");
    if (status == GGML_STATUS_ALLOC_FAILED)
        throw Error(ErrorKind::OutOfMemory, "the CPU backend could not allocate its work buffer");
    if (status != GGML_STATUS_SUCCESS)
        throw Error(ErrorKind::Device, "the CPU backend failed to run a graph");
}

}  // namespace sde
