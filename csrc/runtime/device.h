// A compute device: a ggml backend with its memory, its threads and its cancel flag.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "ggml-backend.h"
#include "runtime/backends.h"
#include "runtime/memory.h"

namespace sde {

// Asked between operators of a running graph; returning true stops it.
using CancelCheck = std::function<bool()>;

// How much an evaluation may round in order to be fast, on devices that run our kernels. Precise:
// float32, and convolutions sum directly. Standard: float32, with Winograd's method for
// convolutions. Fast: products of operands rounded to 8 or 16 bits as well, see
// kernels/fast/fast.h.
enum class Arithmetic { Precise, Standard, Fast };

class Device {
  public:
    // The CPU. `threads` 0 takes one thread per physical core that this process may use. With
    // `portable` it is treated as a device with memory of its own that knows ggml's operators only:
    // graphs are made of those that every GPU takes, so what runs here runs there.
    static std::shared_ptr<Device> cpu(int threads, bool portable = false);
    // One of ggml's devices, with memory of its own.
    static std::shared_ptr<Device> foreign(ggml_backend_dev_t device, const std::string& name);
    // By name: "cpu:portable", or one of runtime/backends.h. Throws Device for one that is not
    // there.
    static std::shared_ptr<Device> open(const std::string& name, int threads);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    const std::string& name() const noexcept { return name_; }
    ggml_backend_t backend() const noexcept { return backend_; }
    int threads() const noexcept { return threads_; }
    // Whether operators written by us run here, on weights where they lie in the file. If not, the
    // device has memory of its own, and operators are ggml's.
    bool runs_custom() const noexcept { return runs_custom_; }
    // Whether the device computes this operator itself; it needs no memory for that.
    bool supports(const ggml_tensor* node) const;

    // Where tensors of graphs lie.
    ggml_backend_buffer_type_t buffer_type() const noexcept { return buffer_type_; }
    // Host memory that copies to the device read at full speed; null where there is no such kind.
    ggml_backend_buffer_type_t staging_type() const noexcept { return staging_type_; }
    // A second queue that copies from staging memory while the first computes; null where the
    // backend has none.
    ggml_backend_t copier();
    bool copies_beside() const noexcept { return copies_beside_; }

    struct Memory {
        size_t free = 0, total = 0;
    };
    Memory memory() const;
    // Counted at every allocation: weights, activations and what is between.
    const std::shared_ptr<MemoryTally>& tally() const noexcept { return tally_; }
    // The same for staging memory.
    const std::shared_ptr<MemoryTally>& host_tally() const noexcept { return host_tally_; }

    // For the one evaluation that may use a device with memory of its own.
    std::mutex& in_use() noexcept { return in_use_; }

    // Set before graphs are built.
    Arithmetic arithmetic() const noexcept { return arithmetic_; }
    void set_arithmetic(Arithmetic arithmetic) noexcept { arithmetic_ = arithmetic; }

    // Runs an allocated graph. Throws Cancelled when `cancel` says so, Device when the backend
    // fails. Calls from several threads wait for each other.
    void compute(ggml_cgraph* graph, int threads, const CancelCheck& cancel);
    // The same operator by operator: `record` is told each one's begin and duration in seconds.
    using Record = std::function<void(const ggml_tensor& node, double begin, double seconds)>;
    void compute_each(ggml_cgraph* graph, int threads, const CancelCheck& cancel,
                      const Record& record);
    // Begins to run a graph where the backend can go on alone, and else runs it. `wait` follows.
    void begin(ggml_cgraph* graph, int threads, const CancelCheck& cancel);
    void wait();
    // The same on the way out of a failure: what the backend has to say is not heard.
    void settle() noexcept;

  private:
    Device() = default;
    void start_cpu(int threads);
    void run(ggml_cgraph* graph, const CancelCheck& cancel);
    void check(ggml_status status) const;
    // Holds the device for one computation with so many threads.
    class Turn;
    struct OwnMemory;

    std::string name_;
    ggml_backend_t backend_ = nullptr, copier_ = nullptr;
    ggml_backend_buffer_type_t buffer_type_ = nullptr, staging_type_ = nullptr;
    std::unique_ptr<OwnMemory> own_memory_;
    std::shared_ptr<MemoryTally> tally_ = std::make_shared<MemoryTally>();
    std::shared_ptr<MemoryTally> host_tally_ = std::make_shared<MemoryTally>();
    const backends::CpuFunctions* cpu_ = nullptr;
    ggml_threadpool_t threadpool_ = nullptr;  // of the CPU only
    bool runs_custom_ = true, copies_beside_ = false;
    int threads_ = 1;
    Arithmetic arithmetic_ = Arithmetic::Standard;
    int64_t process_ = 0;  // the process that started the threads
    std::mutex mutex_, in_use_;
};

// Operators that only show their operand in another way.
bool computes_nothing(const ggml_tensor& node);

// Physical cores that this process may run on (at least 1).
int physical_cores();

}  // namespace sde
