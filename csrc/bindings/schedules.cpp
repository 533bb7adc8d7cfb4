#include "sampling/schedules.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "sampling/noise_levels.h"
#include "sampling/prediction.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

using namespace sampling;

py::array_t<float> vector_to_numpy(const std::vector<float>& values) {
    return to_numpy(values, Shape{static_cast<int64_t>(values.size())});
}

std::string kind_name(const NoiseLevels& levels) {
    switch (levels.kind()) {
        case NoiseLevels::Kind::Flow:
            return "flow";
        case NoiseLevels::Kind::Edm:
            return "edm";
        default:
            return "betas";
    }
}

Prediction make_prediction(const std::string& kind, std::optional<float> sigma_data,
                           std::optional<NoiseLevels> boundary) {
    PredictionOptions options{sigma_data, nullptr};
    if (boundary) options.boundary = std::make_shared<const NoiseLevels>(std::move(*boundary));
    return Prediction::parse(kind, std::move(options));
}

py::array_t<float> denoise(const Prediction& prediction, const FloatArray& x,
                           const FloatArray& output, float sigma) {
    if (!(shape_of(x) == shape_of(output)))
        throw Error(ErrorKind::Parameter, "x and the network's output must have one shape, not " +
                                              shape_of(x).text() + " and " +
                                              shape_of(output).text());
    std::vector<float> denoised(static_cast<size_t>(x.size()));
    prediction.denoise({x.data(), denoised.size()}, {output.data(), denoised.size()}, sigma,
                       denoised);
    return to_numpy(std::move(denoised), shape_of(x));
}

void bind_levels(py::module_& m) {
    py::class_<NoiseLevels>(m, "NoiseLevels", "The noise levels that a model was trained at.")
        .def(py::init<const std::string&, double, double, int, bool, bool>(), py::arg("kind"),
             py::arg("beta_start"), py::arg("beta_end"), py::arg("count"),
             py::arg("zero_terminal_snr") = false, py::arg("nearest") = false)
        .def_static("flow", &NoiseLevels::flow, py::arg("shift") = 1.0, py::arg("count") = 1000,
                    py::arg("multiplier") = 1000.0)
        .def_static("edm", &NoiseLevels::edm, py::arg("sigma_min") = 0.002,
                    py::arg("sigma_max") = 80.0, py::arg("count") = 1000)
        .def_property_readonly("kind", kind_name)
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
}

void bind_prediction(py::module_& m) {
    py::class_<Prediction>(m, "Prediction", "What a denoiser's output means.")
        .def(py::init(&make_prediction), py::arg("kind"), py::arg("sigma_data") = py::none(),
             py::arg("boundary") = py::none())
        .def("input_scale", &Prediction::input_scale, py::arg("sigma"))
        .def("latents_scale", &Prediction::latents_scale, py::arg("sigma"))
        .def("denoise", denoise, py::arg("x"), py::arg("output"), py::arg("sigma"));
}

}  // namespace

void bind_schedules(py::module_& m) {
    m.def("schedule_names", schedule_names);
    bind_levels(m);
    bind_prediction(m);

    py::class_<Schedule>(m, "Schedule",
                         "The noise levels of a run, with the timesteps that the network is told.")
        .def(py::init([](const std::string& name, int steps, const NoiseLevels& levels,
                         std::optional<float> rho, int steps_offset, std::optional<float> sigma_min,
                         std::optional<float> sigma_max, const std::string& spacing,
                         std::optional<float> coefficient, std::optional<float> terminal,
                         bool multistep) {
                 return make_schedule(name, steps, levels,
                                      {rho, steps_offset, sigma_min, sigma_max, spacing,
                                       coefficient, terminal, multistep});
             }),
             py::arg("name"), py::arg("steps"), py::arg("levels"), py::arg("rho") = py::none(),
             py::arg("steps_offset") = 0, py::arg("sigma_min") = py::none(),
             py::arg("sigma_max") = py::none(), py::arg("spacing") = "",
             py::arg("coefficient") = py::none(), py::arg("terminal") = py::none(),
             py::arg("multistep") = false)
        .def_static("from_sigmas", &Schedule::from_sigmas, py::arg("sigmas"), py::arg("levels"))
        .def_static("from_timesteps", &Schedule::from_timesteps, py::arg("timesteps"),
                    py::arg("levels"))
        .def("part", &Schedule::part, py::arg("first"), py::arg("last"))
        .def_property_readonly("steps", &Schedule::steps)
        .def_property_readonly("sigmas",
                               [](const Schedule& s) { return vector_to_numpy(s.sigmas); })
        .def_property_readonly("timesteps",
                               [](const Schedule& s) { return vector_to_numpy(s.timesteps); })
        .def_readonly("initial_scale", &Schedule::initial_scale);
}

}  // namespace sde::bindings
