// The kernels of every unit that this build has.
#pragma once

#include "kernels/dispatch.h"
#include "kernels/fast/fast.h"

namespace sde::kernels {

extern const UnitTable int8_plain_unit, bf16_plain_unit;
#if defined(__x86_64__)
extern const UnitTable int8_avxvnni_unit, int8_avx512vnni_unit, bf16_avx512_unit;
#elif defined(__aarch64__)
extern const UnitTable int8_dotprod_unit, int8_i8mm_unit, bf16_neon_unit;
#endif

}  // namespace sde::kernels
