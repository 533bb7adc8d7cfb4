// What of a graph need not be computed at every run.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "runtime/device.h"

namespace sde {

// The part of a graph that parameters and steady inputs decide alone. Steady inputs are those that
// keep their values for many runs: texts, sizes and pictures, over all steps. Such operators come
// first in the graph and are left out of a run while nothing that decides them has changed. What
// the others read of them (keys and values of cross-attention, projected texts, features of a
// control's picture) is kept in memory of its own, which no other operator uses.
class Steady {
  public:
    using Inputs = std::map<std::string, ggml_tensor*>;
    // Multiply-adds of an operator.
    using Work = std::function<int64_t(const ggml_tensor*)>;

    // Reorders the operators of `graph`, which is complete but has no memory yet. Those of `inputs`
    // that are not in `steady` vary.
    Steady(ggml_cgraph* graph, const Inputs& inputs, const Inputs& steady, const Work& work);
    Steady(const Steady&) = delete;
    Steady& operator=(const Steady&) = delete;

    // Bytes of the kept results. They have memory before the graph's own is planned: real, or,
    // where a plan is all that is wanted, none.
    size_t bytes(ggml_backend_buffer_type_t type) const;
    void allocate(const Device& device);  // throws OutOfMemory
    void free();
    void pretend();
    // The memory; null where nothing is kept.
    ggml_backend_buffer_t buffer() const noexcept { return buffer_ ? buffer_->raw() : nullptr; }
    size_t allocated_bytes() const noexcept { return buffer_ ? buffer_->bytes() : 0; }

    // The values of an input for the next run.
    void see(const std::string& input, const void* data, size_t bytes);
    // Parameters have changed, or kept results are lost.
    void forget() noexcept { is_fresh_ = false; }
    // The first so many operators need not run while what they leave is fresh, which it is after a
    // run.
    int count() const noexcept { return count_; }
    bool is_fresh() const noexcept { return is_fresh_; }
    void end() noexcept { is_fresh_ = true; }

  private:
    void part(ggml_cgraph* graph, const Inputs& varying, const Work& work);

    int count_ = 0;
    std::vector<ggml_tensor*> kept_;
    std::map<std::string, std::vector<char>> values_;  // of the steady inputs, at the latest run
    std::unique_ptr<Buffer> buffer_;
    bool is_fresh_ = false;
};

}  // namespace sde
