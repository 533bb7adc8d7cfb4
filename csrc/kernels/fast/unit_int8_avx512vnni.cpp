// Compiler flags of this file: see CMakeLists.txt.
#define SDE_UNIT_TABLE int8_avx512vnni_unit
#define SDE_LANES 16
#include "kernels/fast/int8_unit.inl"
