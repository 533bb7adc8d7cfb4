// Shape checks: ggml asserts kill the process, so nothing wrong may reach it.
#pragma once

#include <string>

#include "base/error.h"
#include "nn/tensor.h"

namespace sde::nn {

inline void expect(bool ok, const std::string& what, const Tensor& x) {
    if (!ok) throw Error(ErrorKind::Parameter, what + ", but the tensor is " + x.shape().text());
}

inline void expect_same(const Tensor& a, const Tensor& b, const std::string& what) {
    if (!(a.shape() == b.shape()))
        throw Error(ErrorKind::Parameter, what + ": " + a.shape().text() + " and " +
                                              b.shape().text() + " should be equal");
}

}  // namespace sde::nn
