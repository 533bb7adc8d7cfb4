// One function per bound area; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace sde::bindings {

void bind_errors(pybind11::module_& m);
void bind_weights(pybind11::module_& m);
void bind_adapters(pybind11::module_& m);
void bind_backends(pybind11::module_& m);
void bind_networks(pybind11::module_& m);
void bind_stages(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_ggml_linear(pybind11::module_& kernels);
void bind_schedules(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);

}  // namespace sde::bindings
