// Compiler flags of this file: see CMakeLists.txt.
#define SDE_UNIT_TABLE int8_i8mm_unit
#define SDE_LANES 4
#define SDE_TOGETHER 2
#include "kernels/fast/int8_unit.inl"
