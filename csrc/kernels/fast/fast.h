// Arithmetic::Fast: matrix products of operands rounded to 8 or 16 bits.
//
// A unit is a set of instructions that multiply several pairs of values per 32-bit lane and add the
// products up: four pairs of 8-bit whole numbers, or two pairs of bfloat16. Its kernels are
// compiled from fast/*.inl, once per unit (files unit_*.cpp; flags in CMakeLists.txt), under the
// rule of simd/kernels.inl.
//
// - Int8: for quantized weights. Both operands are blocks of 32 values of 8 bits with a float32
//   scale, the scheme of ggml's q8_0. Weights of q8_0, q5_0, q4_0 and iq4_nl are multiplied as the
//   file has them; those of other types are rounded to such blocks tile by tile, and so is the
//   input. Sums of a block are exact, and the blocks are added up in float32.
//
// - Bf16: for f32, f16 and bf16 weights, and for attention. Operands are rounded to bfloat16, sums
//   are float32.
//
// What a unit does not take stays in float32: products with few rows, attention with masks, and
// convolutions that are more than a product.
#pragma once

#include <optional>
#include <string>

#include "kernels/kernels.h"

namespace sde::kernels {

// Plain ones are the oracle of the others in tests; no model runs on them.
enum class Unit {
    Int8Plain,
    Int8AvxVnni,
    Int8Avx512Vnni,
    Int8Dotprod,
    Int8I8mm,
    Bf16Plain,
    Bf16Avx512,
    Bf16Neon
};
constexpr Unit kUnits[] = {Unit::Int8Plain,   Unit::Int8AvxVnni, Unit::Int8Avx512Vnni,
                           Unit::Int8Dotprod, Unit::Int8I8mm,    Unit::Bf16Plain,
                           Unit::Bf16Avx512,  Unit::Bf16Neon};

struct UnitTable {
    void (*linear)(const Linear&, Team&);
    void (*conv2d)(const Conv2d&, Team&);        // where is_product()
    void (*attention)(const Attention&, Team&);  // null in the units of 8 bits
};

// Whether this build has the unit and this processor can run it.
bool available(Unit unit) noexcept;
const char* name_of(Unit unit) noexcept;
std::optional<Unit> unit_named(const std::string& name) noexcept;
// The kernels of an available unit.
const UnitTable& unit_table(Unit unit) noexcept;

// Whether a convolution multiplies each pixel by a matrix. For 3x3 ones Winograd's method in
// float32 is 1.2 to 1.9 times as fast as direct sums of 8 bits (measured on Zen 4, AVX-512 VNNI).
bool is_product(const Conv2d& op) noexcept;

// The unit that Arithmetic::Fast runs an operator on; none: float32 is as fast, or all there is.
// Of units that go beyond what SDENGINE_CPU allows (see chosen_isa) there is none.
std::optional<Unit> fast_unit(const Linear& op);
std::optional<Unit> fast_unit(const Conv2d& op);
std::optional<Unit> fast_unit(const Attention& op);

}  // namespace sde::kernels
