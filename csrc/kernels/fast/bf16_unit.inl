// The kernels of a unit that multiplies bfloat16.
#include "kernels/fast/common.inl"

namespace sde::kernels {
namespace {

// clang-format off
#include "kernels/fast/bf16.inl"
#include "kernels/fast/product.inl"
#include "kernels/fast/attention.inl"
// clang-format on

}  // namespace

extern const UnitTable SDE_UNIT_TABLE = {narrow_linear, narrow_conv2d, narrow_attention};

}  // namespace sde::kernels
