// Compiler flags of this file: see CMakeLists.txt.
#define SDE_UNIT_TABLE bf16_plain_unit
#define SDE_LANES 4
#include "kernels/fast/bf16_unit.inl"
