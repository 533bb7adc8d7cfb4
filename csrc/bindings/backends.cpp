#include "runtime/backends.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

py::dict to_dict(const backends::DeviceEntry& device) {
    const backends::Memory memory = backends::memory(device);
    py::dict entry;
    entry["name"] = device.name;
    entry["kind"] = device.kind;
    entry["description"] = device.description;
    entry["integrated"] = device.integrated;
    entry["memory_free"] = memory.free;
    entry["memory_total"] = memory.total;
    return entry;
}

}  // namespace

void bind_backends(py::module_& m) {
    m.def("add_backend_root", backends::add_root, py::arg("folder"),
          "Another folder that holds one folder of libraries per backend.");
    m.def(
        "list_devices",
        [] {
            std::vector<backends::DeviceEntry> found;
            {
                const py::gil_scoped_release released;
                found = backends::devices();
            }
            py::list all;
            for (const backends::DeviceEntry& device : found) all.append(to_dict(device));
            return all;
        },
        "Every device that a backend found, the preferred first, the CPU last.");
    m.def(
        "find_device", [](const std::string& name) { return to_dict(backends::find(name)); },
        py::arg("name"),
        "The device of that name; DeviceError says what there is and what is missing.");
    m.def(
        "backend_failures",
        [] {
            py::list all;
            for (const backends::Failure& failure : backends::failures())
                all.append(
                    py::make_tuple(failure.kind, failure.library, failure.reason, failure.needs));
            return all;
        },
        "(kind, library, reason, needs) of every backend that list_devices could not use.");
}

}  // namespace sde::bindings
