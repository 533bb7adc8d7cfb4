#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "adapters/stack.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/sources.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

// dtype, shape, path, offset, nbytes, strides
using Source = std::tuple<std::string, std::vector<int64_t>, std::filesystem::path, uint64_t,
                          uint64_t, std::optional<std::vector<int64_t>>>;

const std::map<std::string, ChangeKind> kKinds = {
    {"low_rank", ChangeKind::LowRank},
    {"hadamard", ChangeKind::Hadamard},
    {"kronecker", ChangeKind::Kronecker},
    {"glora", ChangeKind::Glora},
    {"add", ChangeKind::Add},
    {"replace", ChangeKind::Replace},
    {"rotate_rows", ChangeKind::RotateRows},
    {"rotate_columns", ChangeKind::RotateColumns},
};

void add(Adapter& adapter, const std::string& parameter, std::vector<int64_t> shape,
         const std::string& kind, const std::map<std::string, Source>& tensors, float factor) {
    auto found = kKinds.find(kind);
    if (found == kKinds.end())
        throw Error(ErrorKind::Parameter, "there is no kind of adapter '" + kind + "'");
    Change::Sources sources;
    for (const auto& [role, source] : tensors) {
        const auto& [dtype, dims, path, offset, nbytes, strides] = source;
        sources.emplace(role, make_source(dtype, dims, path, offset, nbytes, strides, false));
    }
    adapter.add(parameter, Shape(std::move(shape)), found->second, std::move(sources), factor);
}

}  // namespace

void bind_adapters(py::module_& m) {
    py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter",
                                                  "What one file changes in one network.")
        .def(py::init<>())
        .def("add", add, py::arg("parameter"), py::arg("shape"), py::arg("kind"),
             py::arg("tensors"), py::arg("factor") = 1.0f,
             "Add a change of the parameter of this name and shape. `tensors` maps a role to "
             "(dtype, shape, path, offset, nbytes, strides); shapes are checked, nothing is read.")
        .def_property_readonly(
            "parameters",
            [](const Adapter& adapter) {
                std::vector<std::string> names;
                for (const Change& change : adapter.changes()) names.push_back(change.parameter());
                return names;
            },
            "Names of the parameters that it changes; some may be changed twice.");
}

}  // namespace sde::bindings
