// What backends take of a device for themselves while they compute, besides the buffers that are
// planned.
#pragma once

#include <cstddef>
#include <string>

#include "ggml.h"

namespace sde {

// Bytes that operators are given at most, in turn: a backend keeps them from one to the next.
class Scratch {
  public:
    // What of an operator's operands a backend copies, in bytes.
    struct Operands {
        size_t weights = 0, inputs = 0, results = 0;
    };
    // `device` is a device's name; those of no kind that is known take nothing.
    explicit Scratch(const std::string& device);
    void add(const ggml_tensor& node);
    size_t bytes() const noexcept;

  private:
    enum class Kind { None, Cuda, Vulkan } kind_;
    Operands largest_;
};

}  // namespace sde
