// The kernels of a unit that multiplies whole numbers of 8 bits.
#include "kernels/fast/common.inl"

namespace sde::kernels {
namespace {

// clang-format off
#include "kernels/fast/int8.inl"
#include "kernels/fast/product.inl"
// clang-format on

}  // namespace

extern const UnitTable SDE_UNIT_TABLE = {narrow_linear, narrow_conv2d, nullptr};

}  // namespace sde::kernels
