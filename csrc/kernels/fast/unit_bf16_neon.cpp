// Compiler flags of this file: see CMakeLists.txt.
#define SDE_UNIT_TABLE bf16_neon_unit
#define SDE_LANES 4
#define SDE_TOGETHER 2
#include "kernels/fast/bf16_unit.inl"
