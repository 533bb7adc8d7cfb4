// Sizes of parameters that are seen as matrices [out, rest].
#pragma once

#include <cmath>
#include <cstdint>

#include "base/shape.h"

namespace sde {

// Pixels of a kernel [out, in, h, w]; 1 for a matrix.
inline int64_t pixels(const Shape& shape) {
    return shape.rank() == 4 ? shape[2] * shape[3] : 1;
}

inline int64_t rest(const Shape& shape) {
    return shape.rank() > 1 ? shape.elements() / shape[0] : 1;
}

// The size of the square above whose diagonal there are so many values; 0 if there is none.
inline int64_t triangle_side(int64_t values) {
    const auto size =
        static_cast<int64_t>((1 + std::sqrt(1 + 8 * static_cast<double>(values))) / 2);
    return size * (size - 1) / 2 == values ? size : 0;
}

}  // namespace sde
