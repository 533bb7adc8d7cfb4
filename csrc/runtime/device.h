// A compute device: a ggml backend with its threads and its cancel flag.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace sde {

// Asked between operators of a running graph; returning true stops it.
using CancelCheck = std::function<bool()>;

class Device {
  public:
    // The CPU. `threads` 0 takes one thread per physical core that this process may use.
    static std::shared_ptr<Device> cpu(int threads);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    ggml_backend_t backend() const noexcept { return backend_; }
    int threads() const noexcept { return threads_; }

    // Runs an allocated graph. Throws Cancelled when `cancel` says so, Device when the backend
    // fails. Calls from several threads wait for each other.
    void compute(ggml_cgraph* graph, int threads, const CancelCheck& cancel);
    // The same operator by operator: `record` is told each one's begin and duration in seconds.
    using Record = std::function<void(const ggml_tensor& node, double begin, double seconds)>;
    void compute_each(ggml_cgraph* graph, int threads, const CancelCheck& cancel,
                      const Record& record);

  private:
    Device() = default;
    void run(ggml_cgraph* graph, const CancelCheck& cancel);
    // Holds the device for one computation with so many threads.
    class Turn;

    ggml_backend_t backend_ = nullptr;
    ggml_threadpool_t threadpool_ = nullptr;
    int threads_ = 1;
    int64_t process_ = 0;  // the process that started the threads
    std::mutex mutex_;
};

// Physical cores that this process may run on (at least 1).
int physical_cores();

}  // namespace sde
