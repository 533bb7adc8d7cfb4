#include <pybind11/stl.h>

#include "base/cancel.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/interrupt.h"
#include "stages/runner.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

Config to_config(const py::handle& value) {
    if (py::isinstance<py::bool_>(value)) return Config(value.cast<bool>());
    if (py::isinstance<py::int_>(value)) return Config(value.cast<int64_t>());
    if (py::isinstance<py::float_>(value)) return Config(value.cast<double>());
    if (py::isinstance<py::str>(value)) return Config(value.cast<std::string>());
    if (py::isinstance<py::dict>(value)) {
        Config::Map map;
        for (const auto& [key, entry] : value.cast<py::dict>())
            map.emplace(key.cast<std::string>(), to_config(entry));
        return Config(std::move(map));
    }
    if (py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value)) {
        Config::List list;
        for (const py::handle& entry : value.cast<py::sequence>()) list.push_back(to_config(entry));
        return Config(std::move(list));
    }
    throw Error(ErrorKind::Parameter,
                "a network's config holds bool, int, float, str, list and dict only");
}

py::dict run(Runner& runner, const std::map<std::string, py::array>& inputs,
             const networks::Options& options, const CancelToken* cancel) {
    HostArrays given;
    for (const auto& [name, array] : inputs) given[name] = to_host(array);
    const HostArrays results = without_gil(
        cancel, [&](const CancelCheck& check) { return runner.run(given, options, check); });
    py::dict out;
    for (const auto& [name, array] : results)
        out[py::str(name)] = to_numpy(array.floats, array.shape);
    return out;
}

}  // namespace

void bind_networks(py::module_& m) {
    m.def("physical_cores", physical_cores, "Physical cores that this process may use.");

    py::class_<CancelToken, std::shared_ptr<CancelToken>>(m, "CancelToken",
                                                          "Stops a run from another thread.")
        .def(py::init<>())
        .def("cancel", &CancelToken::cancel)
        .def_property_readonly("cancelled", &CancelToken::cancelled);

    py::class_<Device, std::shared_ptr<Device>>(m, "Device", "A compute device with its threads.")
        .def_static("cpu", &Device::cpu, py::arg("threads") = 0)
        .def_property_readonly("threads", &Device::threads);

    m.def(
        "parameters",
        [](const std::string& kind, const py::dict& config) {
            // Both halves of an autoencoder are one component in every file.
            const bool autoencoder = kind == "autoencoder_kl" || kind == "autoencoder_tiny";
            const Config values = to_config(config);
            auto list = networks::list_parameters(autoencoder ? kind + "_encoder" : kind, values);
            if (autoencoder)
                for (auto& entry : networks::list_parameters(kind + "_decoder", values))
                    list.push_back(entry);
            py::list out;
            for (const auto& [name, shape] : list)
                out.append(py::make_tuple(name, py::tuple(py::cast(shape.dims()))));
            return out;
        },
        py::arg("kind"), py::arg("config"),
        "Names and shapes of every parameter of the network `kind` with this configuration.");

    py::class_<Profile, std::shared_ptr<Profile>>(
        m, "Profile", "Times of operators, in the order in which they ran.")
        .def(py::init<>())
        .def(
            "take",
            [](Profile& profile) {
                py::list out;
                for (const OperatorTime& time : profile.take())
                    out.append(py::make_tuple(time.kind, time.parameter, time.begin, time.seconds,
                                              time.multiply_adds, time.bytes));
                return out;
            },
            "What was recorded since the last call: (kind, parameter, begin, seconds, "
            "multiply-adds, bytes) of each operator.");

    py::class_<Runner, std::shared_ptr<Runner>>(m, "Network",
                                                "A network with its parameters on a device.")
        .def(py::init([](const std::string& kind, const py::dict& config,
                         std::shared_ptr<WeightStore> store, std::shared_ptr<Device> device) {
                 const Config values = to_config(config);
                 const py::gil_scoped_release release;  // weights may have to be converted
                 return std::make_shared<Runner>(kind, values, std::move(store), std::move(device));
             }),
             py::arg("kind"), py::arg("config"), py::arg("store"), py::arg("device"))
        .def("run", run, py::arg("inputs"), py::arg("options") = networks::Options{},
             py::arg("cancel") = nullptr,
             "Evaluate once: arrays by name in, arrays by name out. The GIL is released.")
        .def(
            "planned_bytes",
            [](const Runner& runner, const std::map<std::string, std::vector<int64_t>>& shapes,
               const networks::Options& options) {
                networks::InputShapes given;
                for (const auto& [name, dims] : shapes) given[name] = Shape(dims);
                return runner.planned_bytes(given, options);
            },
            py::arg("shapes"), py::arg("options") = networks::Options{},
            "Bytes of activations that an evaluation at these input shapes takes; none is "
            "allocated.")
        .def(
            "set_adapters",
            [](Runner& runner, const std::vector<std::pair<std::shared_ptr<Adapter>, float>>& of) {
                std::vector<AdapterUse> uses;
                for (const auto& [adapter, scale] : of) uses.push_back({adapter, scale});
                const py::gil_scoped_release release;
                runner.set_adapters(uses);
            },
            py::arg("adapters"),
            "Make exactly these adapters apply, each with its scale; they read their files now.")
        .def_property_readonly("adapter_bytes", &Runner::adapter_bytes,
                               "Memory that the adapters take.")
        .def("set_profile", &Runner::set_profile, py::arg("profile").none(true),
             "Run the operators one by one from now on, with their times in `profile`; None ends "
             "it.")
        .def("release", &Runner::release, py::call_guard<py::gil_scoped_release>(),
             "Free the graphs; the next run builds them again.")
        .def("release_weights", &Runner::release_weights, py::call_guard<py::gil_scoped_release>(),
             "Let mapped weights leave memory; the next run reads them again from the file.")
        .def(
            "release_activations", &Runner::release_activations,
            py::call_guard<py::gil_scoped_release>(),
            "Let large activations leave memory; the graphs stay, and the next run takes it again.")
        .def_property_readonly(
            "activation_bytes",
            py::cpp_function(&Runner::activation_bytes, py::call_guard<py::gil_scoped_release>()))
        .def_property_readonly("guidance_layers",
                               [](const Runner& r) { return r.guidance_support().layers; })
        .def_property_readonly("graphs_built", &Runner::graphs_built);
}

}  // namespace sde::bindings
