// What the kernels of every unit are built on.
#include <cstdint>
#include <cstring>

#include "kernels/fast/tables.h"
#include "kernels/scratch.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sde::kernels {
namespace {

// Each builds on those before it.
// clang-format off
#include "kernels/simd/vector.inl"
#include "kernels/simd/functions.inl"
#include "kernels/simd/bytes.inl"
#include "kernels/simd/blocks.inl"
#include "kernels/simd/dequantize.inl"
#include "kernels/simd/panel.inl"
#include "kernels/simd/tile.inl"
#include "kernels/simd/product.inl"
#include "kernels/fast/operands.inl"
// clang-format on

}  // namespace
}  // namespace sde::kernels
