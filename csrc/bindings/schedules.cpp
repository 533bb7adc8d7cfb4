#include "sampling/schedules.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "sampling/noise_levels.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

using namespace sampling;

py::array_t<float> vector_to_numpy(const std::vector<float>& values) {
    return to_numpy(values, Shape{static_cast<int64_t>(values.size())});
}

}  // namespace

void bind_schedules(py::module_& m) {
    m.def("schedule_names", schedule_names);

    py::class_<NoiseLevels>(m, "NoiseLevels", "The sigmas of a model's training timesteps.")
        .def(py::init<const std::string&, double, double, int, bool>(), py::arg("kind"),
             py::arg("beta_start"), py::arg("beta_end"), py::arg("count"),
             py::arg("zero_terminal_snr") = false)
        .def_property_readonly("sigma_min", &NoiseLevels::sigma_min)
        .def_property_readonly("sigma_max", &NoiseLevels::sigma_max)
        .def("sigma", &NoiseLevels::sigma, py::arg("timestep"))
        .def("timestep", &NoiseLevels::timestep, py::arg("sigma"))
        .def("__len__", &NoiseLevels::count)
        .def(
            "__getitem__",
            [](const NoiseLevels& levels, int index) {
                if (index < 0 || index >= levels.count()) throw py::index_error();
                return levels[index];
            },
            py::arg("index"));

    py::class_<Schedule>(m, "Schedule",
                         "The noise levels of a run, with the timesteps that the network is told.")
        .def(py::init([](const std::string& name, int steps, const NoiseLevels& levels,
                         std::optional<float> rho, int steps_offset) {
                 return make_schedule(name, steps, levels, {rho, steps_offset});
             }),
             py::arg("name"), py::arg("steps"), py::arg("levels"), py::arg("rho") = py::none(),
             py::arg("steps_offset") = 0)
        .def_property_readonly("sigmas",
                               [](const Schedule& s) { return vector_to_numpy(s.sigmas); })
        .def_property_readonly("timesteps",
                               [](const Schedule& s) { return vector_to_numpy(s.timesteps); })
        .def_readonly("initial_scale", &Schedule::initial_scale);
}

}  // namespace sde::bindings
