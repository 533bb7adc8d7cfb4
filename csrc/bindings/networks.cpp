#include <pybind11/stl.h>

#include "base/cancel.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/interrupt.h"
#include "runtime/failing.h"
#include "runtime/scratch.h"
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

using Dims = std::map<std::string, std::vector<int64_t>>;

networks::InputShapes to_shapes(const Dims& shapes) {
    networks::InputShapes given;
    for (const auto& [name, dims] : shapes) given[name] = Shape(dims);
    return given;
}

using Devices = std::vector<std::shared_ptr<Device>>;

// A device, or several.
Devices to_devices(const py::object& device) {
    if (py::isinstance<Device>(device)) return {device.cast<std::shared_ptr<Device>>()};
    return device.cast<Devices>();
}

using Bytes = std::map<std::string, size_t>;

Bytes summed(const std::vector<Footprint>& footprints) {
    Footprint sum;
    for (const Footprint& each : footprints) {
        sum.activations += each.activations;
        sum.weights += each.weights;
        sum.staging += each.staging;
        sum.kept += each.kept;
        sum.scratch += each.scratch;
    }
    return {{"activations", sum.activations},
            {"weights", sum.weights},
            {"staging", sum.staging},
            {"kept", sum.kept},
            {"scratch", sum.scratch}};
}

std::vector<Footprint> planned(const Runner& runner, const Dims& shapes,
                               const networks::Options& options,
                               const std::vector<std::string>& steady, const Residence& residence) {
    return runner.planned({{to_shapes(shapes), options, steady}}, residence).each.front();
}

// A network waits for evaluations on its devices before it goes. These ask for the GIL, to see
// whether they are to stop: it is not held meanwhile.
std::shared_ptr<Runner> freed_without_gil(std::shared_ptr<Runner> runner) {
    Runner* address = runner.get();
    return {address, [held = std::move(runner)](Runner*) mutable {
                if (!PyGILState_Check()) return held.reset();
                const py::gil_scoped_release release;
                held.reset();
            }};
}

py::dict run(Runner& runner, const std::map<std::string, py::array>& inputs,
             const networks::Options& options, const CancelToken* cancel,
             const std::vector<std::string>& steady) {
    HostArrays given;
    for (const auto& [name, array] : inputs) given[name] = to_host(array);
    for (const std::string& name : steady)
        if (const auto found = given.find(name); found != given.end()) found->second.steady = true;
    const HostArrays results = without_gil(
        cancel, [&](const CancelCheck& check) { return runner.run(given, options, check); });
    py::dict out;
    for (const auto& [name, array] : results)
        out[py::str(name)] = to_numpy(array.floats, array.shape);
    return out;
}

py::list rehearsed(const Runner& runner) {
    std::vector<Evaluation> asked;
    {
        const py::gil_scoped_release release;
        asked = runner.rehearsed();
    }
    py::list out;
    for (const Evaluation& one : asked) {
        py::dict shapes;
        for (const auto& [name, shape] : one.shapes) shapes[py::str(name)] = shape.dims();
        out.append(py::make_tuple(shapes, one.options, one.steady, one.graphs_kept));
    }
    return out;
}

size_t product_scratch(const std::string& device, const std::string& dtype,
                       const std::pair<int64_t, int64_t>& shape, int64_t rows) {
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
        ggml_init({4 * ggml_tensor_overhead(), nullptr, true}), ggml_free);
    const ggml_type type = DType::parse(dtype).type;
    ggml_tensor* matrix = ggml_new_tensor_2d(context.get(), type, shape.second, shape.first);
    ggml_tensor* input = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, shape.second, rows);
    Scratch scratch(device);
    scratch.add(*ggml_mul_mat(context.get(), matrix, input));
    return scratch.bytes();
}

// The method of step caching, empty where there is none.
std::string reuse_of(const Runner& runner) {
    switch (runner.reuse()) {
        case networks::Reuse::Features:
            return "features";
        case networks::Reuse::FirstBlock:
            return "first_block";
        case networks::Reuse::None:
            break;
    }
    return "";
}

constexpr const char* kArithmetics[] = {"precise", "standard", "fast"};

Arithmetic arithmetic_named(const std::string& name) {
    for (int i = 0; i < 3; ++i)
        if (name == kArithmetics[i]) return static_cast<Arithmetic>(i);
    throw Error(ErrorKind::Parameter,
                "arithmetic must be precise, standard or fast, not '" + name + "'");
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
        .def_static("cpu", &Device::cpu, py::arg("threads") = 0, py::arg("portable") = false,
                    "The CPU; with `portable` as a device with memory of its own that runs ggml's "
                    "operators only.")
        .def_static("open", &Device::open, py::arg("name"), py::arg("threads") = 0,
                    "A device by its name.")
        .def_property_readonly("name", &Device::name)
        .def_property_readonly("threads", &Device::threads)
        .def_property_readonly("arithmetic",
                               [](const Device& device) {
                                   return kArithmetics[static_cast<int>(device.arithmetic())];
                               })
        .def(
            "set_arithmetic",
            [](Device& device, const std::string& name) {
                device.set_arithmetic(arithmetic_named(name));
            },
            py::arg("arithmetic"),
            "\"precise\", \"standard\" or \"fast\"; set before networks run.")
        .def_property_readonly("has_own_memory",
                               [](const Device& device) { return !device.runs_custom(); })
        .def(
            "memory",
            [](const Device& device) {
                const Device::Memory memory = device.memory();
                return std::make_pair(memory.free, memory.total);
            },
            "(free, total) bytes of the device's memory.")
        .def_property_readonly("allocated_bytes",
                               [](const Device& device) { return device.tally()->allocated(); })
        .def_property_readonly("peak_bytes",
                               [](const Device& device) { return device.tally()->peak(); })
        .def_property_readonly(
            "staging_bytes", [](const Device& device) { return device.host_tally()->allocated(); })
        .def(
            "reset_peak", [](const Device& device) { device.tally()->reset_peak(); },
            "Count the peak anew from what is allocated now.");

    m.def(
        "fail_allocation", testing::fail_allocation, py::arg("n"),
        "For tests: the n-th allocation of device, staging or large host memory from now on fails; "
        "with -n all after it, too; 0 ends it.");
    m.def("allocations_until_failure", testing::allocations_until_failure,
          "For tests: what is left of the n of fail_allocation.");
    m.def("fail_in_graph", testing::fail_in_graph, py::arg("by_abort"), py::arg("message"),
          "For tests: fail as a backend does in the middle of a graph.");
    m.def("product_scratch", product_scratch, py::arg("device"), py::arg("dtype"), py::arg("shape"),
          py::arg("rows"),
          "Bytes that a device's backend takes for itself for a product of a matrix with so many "
          "rows.");

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
                         std::shared_ptr<WeightStore> store, const py::object& device,
                         std::vector<double> shares) {
                 const Config values = to_config(config);
                 Devices devices = to_devices(device);
                 const py::gil_scoped_release release;  // weights may have to be converted
                 return freed_without_gil(std::make_shared<Runner>(
                     kind, values, std::move(store), std::move(devices), std::move(shares)));
             }),
             py::arg("kind"), py::arg("config"), py::arg("store"), py::arg("device"),
             py::arg("shares") = std::vector<double>{},
             "`device` may be several with memory of their own: the first operators then run on "
             "the first of them, and so on. `shares` are of the weights; without, they are equal.")
        .def("run", run, py::arg("inputs"), py::arg("options") = networks::Options{},
             py::arg("cancel") = nullptr, py::arg("steady") = std::vector<std::string>{},
             "Evaluate once: arrays by name in, arrays by name out. The GIL is released. What "
             "depends on the `steady` inputs alone is computed when they have other values only.")
        .def(
            "set_residency",
            [](Runner& runner, const std::string& policy, size_t slot_bytes, size_t keep) {
                runner.set_residency({parse_policy(policy), slot_bytes, keep});
            },
            py::arg("policy"), py::arg("slot_bytes") = 0, py::arg("keep") = 0,
            py::call_guard<py::gil_scoped_release>(),
            "Where the weights are from the next run on: \"resident\", \"offload\", \"stream\" or "
            "\"disk\". `slot_bytes` is what the weights of a segment may take; 0 chooses. With the "
            "latter two so many bytes of weights as `keep` stay, spread evenly over the network.")
        .def_property_readonly(
            "residency",
            py::cpp_function([](const Runner& runner) { return policy_name(runner.residency()); },
                             py::call_guard<py::gil_scoped_release>()))
        .def(
            "planned",
            [](const Runner& runner, const Dims& shapes, const networks::Options& options,
               const std::string& policy, size_t slot_bytes, const std::vector<std::string>& steady,
               size_t keep) {
                return summed(planned(runner, shapes, options, steady,
                                      {parse_policy(policy), slot_bytes, keep}));
            },
            py::call_guard<py::gil_scoped_release>(), py::arg("shapes"),
            py::arg("options") = networks::Options{}, py::arg("policy") = "resident",
            py::arg("slot_bytes") = 0, py::arg("steady") = std::vector<std::string>{},
            py::arg("keep") = 0,
            "Bytes that an evaluation at these input shapes takes under a policy: activations and "
            "weights on the device, and host memory for copies to it; none is allocated.")
        .def(
            "planned_by_device",
            [](const Runner& runner, const Dims& shapes, const networks::Options& options,
               const std::string& policy, size_t slot_bytes, const std::vector<std::string>& steady,
               size_t keep) {
                std::vector<Bytes> all;
                for (const Footprint& each : planned(runner, shapes, options, steady,
                                                     {parse_policy(policy), slot_bytes, keep}))
                    all.push_back(summed({each}));
                return all;
            },
            py::call_guard<py::gil_scoped_release>(), py::arg("shapes"),
            py::arg("options") = networks::Options{}, py::arg("policy") = "resident",
            py::arg("slot_bytes") = 0, py::arg("steady") = std::vector<std::string>{},
            py::arg("keep") = 0, "The same for each of its devices.")
        .def(
            "planned_together",
            [](const Runner& runner,
               const std::vector<std::tuple<Dims, networks::Options, std::vector<std::string>>>&
                   evaluations,
               const std::string& policy, size_t slot_bytes, size_t keep) {
                std::vector<Evaluation> runs;
                for (const auto& [shapes, options, steady] : evaluations)
                    runs.push_back({to_shapes(shapes), options, steady});
                const PlannedRuns found =
                    runner.planned(runs, {parse_policy(policy), slot_bytes, keep});
                std::vector<Bytes> each;
                for (const std::vector<Footprint>& footprints : found.each)
                    each.push_back(summed(footprints));
                return std::make_pair(each, found.kept);
            },
            py::call_guard<py::gil_scoped_release>(), py::arg("evaluations"),
            py::arg("policy") = "resident", py::arg("slot_bytes") = 0, py::arg("keep") = 0,
            "What evaluations take: each of them (input shapes, options, steady inputs), and the "
            "bytes of weights that stay when all have been made. Not all graphs of a network read "
            "the same weights.")
        .def(
            "planned_bytes",
            [](const Runner& runner, const Dims& shapes, const networks::Options& options,
               const std::vector<std::string>& steady) {
                return runner.planned_bytes(to_shapes(shapes), options, steady);
            },
            py::call_guard<py::gil_scoped_release>(), py::arg("shapes"),
            py::arg("options") = networks::Options{},
            py::arg("steady") = std::vector<std::string>{},
            "Bytes of activations that an evaluation at these input shapes takes; none is "
            "allocated. What depends on the `steady` inputs alone is kept between evaluations.")
        .def(
            "rehearsal", [](const Runner& runner) { return freed_without_gil(runner.rehearsal()); },
            py::call_guard<py::gil_scoped_release>(),
            "Another one over the same weights that computes nothing: it answers with noise and "
            "keeps what it was asked.")
        .def_property_readonly(
            "rehearsed", rehearsed,
            "What a rehearsal was asked: (input shapes, options, steady inputs, graphs that "
            "were to be kept) of each evaluation.")
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
        .def_property_readonly(
            "adapter_bytes",
            py::cpp_function(&Runner::adapter_bytes, py::call_guard<py::gil_scoped_release>()),
            "Memory that the adapters take.")
        .def("set_profile", &Runner::set_profile, py::arg("profile").none(true),
             py::call_guard<py::gil_scoped_release>(),
             "Run the operators one by one from now on, with their times in `profile`; None ends "
             "it.")
        .def("release", &Runner::release, py::call_guard<py::gil_scoped_release>(),
             "Free the graphs; the next run builds them again.")
        .def("release_weights", &Runner::release_weights, py::call_guard<py::gil_scoped_release>(),
             "Let mapped weights leave memory; the next run reads them again from the file.")
        .def("release_activations", &Runner::release_activations,
             py::call_guard<py::gil_scoped_release>(),
             "Let activations leave memory; the graphs stay, and the next run takes it again.")
        .def("rest", &Runner::rest, py::call_guard<py::gil_scoped_release>(),
             "Leave the memory to others, weights' and activations', until the next run.")
        .def_property_readonly(
            "activation_bytes",
            py::cpp_function(&Runner::activation_bytes, py::call_guard<py::gil_scoped_release>()))
        .def_property_readonly("guidance_layers",
                               [](const Runner& r) { return r.guidance_support().layers; })
        .def_property_readonly("reuse", &reuse_of)
        .def_property_readonly("owned_bytes", &Runner::owned_bytes,
                               "Bytes of converted weights that its store holds in memory.")
        .def_property_readonly("graphs_built", &Runner::graphs_built);
}

}  // namespace sde::bindings
