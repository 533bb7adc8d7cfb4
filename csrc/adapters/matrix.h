// Small dense algebra on float32 matrices in C order.
#pragma once

#include <cstdint>
#include <vector>

namespace sde {

// The transpose of `matrix` [rows, columns].
std::vector<float> transposed(const std::vector<float>& matrix, int64_t rows, int64_t columns);

// a [m, k] times b [k, n], plus `sum` [m, n] if it is given; by this thread alone.
std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b, int64_t m,
                           int64_t k, int64_t n, const float* sum = nullptr);

}  // namespace sde
