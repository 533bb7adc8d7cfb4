// Compiler flags of this file: see CMakeLists.txt.
#define SDE_UNIT_TABLE bf16_avx512_unit
#define SDE_LANES 16
#include "kernels/fast/bf16_unit.inl"
