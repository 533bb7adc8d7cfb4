// One ggml graph with named inputs and outputs: built once, run many times.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/shape.h"
#include "ggml-alloc.h"
#include "ggml.h"
#include "runtime/device.h"
#include "runtime/profile.h"

namespace sde {

class Graph {
  public:
    explicit Graph(std::shared_ptr<Device> device);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    ggml_context* context() const noexcept { return context_; }

    // Building. An input keeps its memory only until its last reader has run, so it is set before
    // every run.
    ggml_tensor* add_input(const std::string& name, ggml_type type, const std::vector<int64_t>& ne);
    // An int32 input whose values must lie in [0, limit): ggml would abort the process on a row
    // that is not there.
    ggml_tensor* add_id_input(const std::string& name, const std::vector<int64_t>& ne,
                              int64_t limit);
    // `shape` is the output's shape in torch order.
    void add_output(const std::string& name, ggml_tensor* tensor, const Shape& shape);
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

    // Plans the memory; no operator may be added afterwards. Throws OutOfMemory with the size that
    // was asked for.
    void allocate();

    // Running: set every input, compute, get the outputs.
    void set_input(const std::string& name, ggml_type type, const void* data, size_t bytes);
    // With a `profile` the operators run one by one, and each is timed.
    void compute(const CancelCheck& cancel, Profile* profile = nullptr);
    void get_output(const std::string& name, void* data, size_t bytes) const;
    const std::map<std::string, Shape>& output_shapes() const noexcept { return output_shapes_; }

    // Bytes of activations that are in memory; planned_bytes is what allocate() would take.
    size_t activation_bytes() const;
    // Activations hold nothing between runs. Large ones leave memory until the next run, where the
    // system has a call for it; small ones stay, since getting memory back takes time, too.
    void release_activations();
    size_t planned_bytes();

  private:
    void add_inputs();
    // Threads that the operators of this graph can keep busy.
    int useful_threads() const;

    std::shared_ptr<Device> device_;
    ggml_context* context_ = nullptr;
    ggml_cgraph* graph_ = nullptr;
    ggml_gallocr_t allocator_ = nullptr;
    std::map<std::string, ggml_tensor*> inputs_, outputs_;
    std::map<std::string, Shape> output_shapes_;
    std::map<std::string, int64_t> id_limits_;
    std::vector<std::shared_ptr<void>> kept_;
    double work_ = 0.0;
    int64_t next_work_ = 0;
    std::unordered_map<const ggml_tensor*, int64_t> multiply_adds_;
    int64_t circular_ = 0;
    bool is_released_ = false;
};

}  // namespace sde
