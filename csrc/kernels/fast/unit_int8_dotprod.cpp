// Compiler flags of this file: see CMakeLists.txt.
#define SDE_UNIT_TABLE int8_dotprod_unit
#define SDE_LANES 4
#include "kernels/fast/int8_unit.inl"
