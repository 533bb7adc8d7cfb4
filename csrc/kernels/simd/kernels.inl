// The kernels of one instruction set. An isa_*.cpp file names the set and its vector length, then
// includes this.
//
// Everything lives in an unnamed namespace, and nothing here calls inline functions or templates of
// the standard library: such a function would be compiled for this instruction set, and the linker
// could then choose that copy for the whole program.
#include <cstdint>
#include <cstring>

#include "kernels/dispatch.h"
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
#include "kernels/simd/dots.inl"
#include "kernels/simd/few_rows.inl"
#include "kernels/simd/windows.inl"
#include "kernels/simd/narrow.inl"
#include "kernels/simd/conv.inl"
#include "kernels/simd/winograd_transform.inl"
#include "kernels/simd/winograd.inl"
#include "kernels/simd/attention.inl"
#include "kernels/simd/norm.inl"
// clang-format on

}  // namespace

extern const KernelTable SDE_ISA_TABLE = {conv2d_kernel,      linear_kernel,     attention_kernel,
                                          group_norm_kernel,  layer_norm_kernel, geglu_kernel,
                                          multiply_add_kernel};

}  // namespace sde::kernels
