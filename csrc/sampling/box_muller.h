// The transform of uniform into normal numbers that torch's AVX2 kernels use, in portable C++.
#pragma once

#include <cstddef>
#include <span>

namespace sde::sampling {

inline constexpr size_t kBoxMullerBlock = 16;

// Turns 16 uniform numbers in [0, 1) into 16 normal ones, in place: the first 8 give radii, the last 8 angles.
void box_muller_block(std::span<float, kBoxMullerBlock> block);

}  // namespace sde::sampling
