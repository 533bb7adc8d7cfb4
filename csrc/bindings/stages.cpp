#include "bindings/bindings.h"

namespace sde::bindings {

void bind_stages(pybind11::module_&) {}

}  // namespace sde::bindings
