// One ggml graph with named inputs and outputs: built once, run many times.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/shape.h"
#include "ggml-alloc.h"
#include "ggml.h"
#include "runtime/device.h"
#include "runtime/profile.h"
#include "runtime/segments.h"
#include "runtime/split.h"
#include "runtime/steady.h"

namespace sde {

class Graph {
  public:
    explicit Graph(std::shared_ptr<Device> device);
    // Over several devices, each with its share of the bytes of parameters; they add up to 1.
    Graph(std::vector<std::shared_ptr<Device>> devices, std::vector<double> shares);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    ggml_context* context() const noexcept { return context_; }
    // Whether the device knows ggml's operators only.
    bool is_portable() const noexcept { return !devices_[0]->runs_custom(); }

    // Building. An input keeps its memory only until its last reader has run, so it is set before
    // every run.
    ggml_tensor* add_input(const std::string& name, ggml_type type, const std::vector<int64_t>& ne);
    // An int32 input whose values must lie in [0, limit): ggml would abort the process on a row
    // that is not there.
    ggml_tensor* add_id_input(const std::string& name, const std::vector<int64_t>& ne,
                              int64_t limit);
    // `shape` is the output's shape in torch order.
    void add_output(const std::string& name, ggml_tensor* tensor, const Shape& shape);
    // A tensor whose values are known now: they are copied to the device when memory is allocated,
    // and stay there as long as that.
    ggml_tensor* add_constant(ggml_type type, const std::vector<int64_t>& ne, const void* values);
    // What several layers make of one tensor, so that it is made once: `what` says which kind of
    // thing it is. Null until the first of them has put it there.
    ggml_tensor*& derived(const std::string& what, const ggml_tensor* source) {
        return derived_[{what, source}];
    }
    // Keeps the description of a custom operator alive as long as the graph.
    template <class T>
    T* keep(T value) {
        auto owned = std::make_shared<T>(std::move(value));
        kept_.push_back(owned);
        return owned.get();
    }
    template <class T>
    T* keep() {
        auto owned = std::make_shared<T>();
        kept_.push_back(owned);
        return owned.get();
    }

    // Computes `tensor` before whatever is added afterwards: for operators that then overwrite what
    // it reads.
    void compute_first(ggml_tensor* tensor);

    Arithmetic arithmetic() const noexcept { return devices_[0]->arithmetic(); }
    bool is_fast() const noexcept { return arithmetic() == Arithmetic::Fast; }

    // Axes along which every convolution's padding wraps around, so that pictures tile: bit 1 is x,
    // bit 2 is y. Set before anything is built.
    void set_circular(int64_t axes);
    bool circular_x() const noexcept { return circular_ & 1; }
    bool circular_y() const noexcept { return circular_ & 2; }

    // Counts the multiply-adds of the operator that is described next, so that the number of
    // threads can follow the size of the operators.
    void add_work(int64_t multiply_adds) noexcept {
        work_ += static_cast<double>(multiply_adds);
        next_work_ += multiply_adds;
    }
    // Says what an operator is, for profiles.
    void describe(ggml_tensor* tensor, const char* kind);

    // Inputs that keep their values for many runs, told when the graph is complete: what they and
    // parameters decide alone is not computed again while they do (steady.h). An input that the
    // graph has not is no error here.
    void set_steady(const std::vector<std::string>& names);
    // Parameters have other values than in the latest run.
    void forget_steady() noexcept;

    // Plans the memory; no operator may be added afterwards. Throws OutOfMemory with the size that
    // was asked for, and Device when there is an operator that the device cannot compute.
    void allocate();

    // Running: prepare, set every input, compute, get the outputs. `prepare` takes the memory again
    // that was released; throws OutOfMemory.
    void prepare();
    void set_input(const std::string& name, ggml_type type, const void* data, size_t bytes);
    // With a `profile` the operators run one by one, and each is timed.
    void compute(const CancelCheck& cancel, Profile* profile = nullptr);
    // The same in parts: the operators [begin, end), which the device may still be running
    // afterwards. Those before `first_operator` are not needed; after the last comes `computed`.
    void compute_part(int begin, int end, const CancelCheck& cancel, Profile* profile = nullptr);
    int first_operator() const noexcept;
    void computed() noexcept;
    // The device of an operator, by index, and whether it is a copy from another device: those are
    // made with `copy_part`, and not computed.
    int device_of(int node) const { return split_ ? split_->devices()[node] : 0; }
    bool is_copy(int node) const;
    void copy_part(int begin, int end);
    // How many operators come first that are needed in some runs only.
    int steady_operators() const noexcept;
    void get_output(const std::string& name, void* data, size_t bytes) const;
    const std::map<std::string, Shape>& output_shapes() const noexcept { return output_shapes_; }

    // The operators in the order in which they run.
    ggml_cgraph* operators() const noexcept { return graph_; }
    // In which parts they run: made by who runs them, and kept with the graph.
    Cut cut;
    // Whether a tensor is a parameter of the network: its values lie elsewhere.
    bool is_parameter(const ggml_tensor* tensor) const;

    // Bytes of activations that are in memory; planned_bytes is what allocate() would take.
    size_t activation_bytes() const;
    // Activations hold nothing between runs but steady results, which can be computed again. They
    // leave a device with memory of its own. On the CPU they leave memory until the next run, where
    // the system has a call for it.
    void release_activations();
    size_t planned_bytes();
    std::vector<size_t> planned_by_device();
    // What the backend of each device may take for itself on top of that.
    std::vector<size_t> scratch_by_device();

  private:
    void complete();
    ggml_gallocr_t new_allocator() const;
    void add_inputs();
    void take_memory();
    void free_activations();
    Device::Record recorder(Profile& profile, std::string& parameter) const;
    void check_operators() const;
    void upload_constants();
    // Threads that the operators of this graph can keep busy.
    int useful_threads() const;

    std::vector<std::shared_ptr<Device>> devices_;
    std::vector<double> shares_;
    std::unique_ptr<Split> split_;  // null on a single device
    ggml_context* context_ = nullptr;
    ggml_cgraph* graph_ = nullptr;
    ggml_gallocr_t allocator_ = nullptr;
    std::vector<Tallied> activations_;   // by device
    std::vector<ggml_tensor*> planned_;  // get their addresses from the allocator
    std::map<std::string, ggml_tensor*> inputs_, outputs_;
    std::map<std::string, Shape> output_shapes_;
    std::map<std::string, int64_t> id_limits_;
    std::vector<std::pair<ggml_tensor*, std::vector<uint8_t>>> constants_;
    std::map<std::pair<std::string, const ggml_tensor*>, ggml_tensor*> derived_;
    std::vector<std::shared_ptr<void>> kept_;
    std::unique_ptr<Steady> steady_;  // null where no input is steady
    double work_ = 0.0;
    int64_t next_work_ = 0;
    std::unordered_map<const ggml_tensor*, int64_t> multiply_adds_;
    int64_t circular_ = 0;
    bool is_released_ = false;
};

}  // namespace sde
