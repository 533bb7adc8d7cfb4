// Errors of the native core. Each kind is one Python exception class of sdengine.errors (see
// bindings/errors.cpp).
#pragma once

#include <stdexcept>
#include <string>

namespace sde {

enum class ErrorKind {
    Format,
    UnsupportedModel,
    Weights,
    Parameter,
    Numeric,
    Device,
    OutOfMemory,
    Output,
    Cancelled
};

class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    ErrorKind kind() const noexcept { return kind_; }

  private:
    ErrorKind kind_;
};

}  // namespace sde
