#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "adapters/stack.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/sources.h"
#include "runtime/library.h"
#include "weights/store.h"
#include "weights/transcode.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

constexpr int64_t kMostValues = 1 << 16;

}  // namespace

void bind_weights(py::module_& m) {
    py::class_<WeightStore, std::shared_ptr<WeightStore>>(
        m, "WeightStore", "Parameters of one component, mapped from files.")
        .def(py::init<>())
        .def(
            "add",
            [](WeightStore& store, const std::string& name, const std::string& dtype,
               std::vector<int64_t> shape, const std::filesystem::path& path, uint64_t offset,
               uint64_t nbytes, std::optional<std::vector<int64_t>> strides, bool transpose,
               const std::optional<std::string>& convert_to, int64_t padding, float scale) {
                std::optional<ggml_type> type;
                if (convert_to) type = DType::parse(*convert_to).writable();
                TensorSource source = make_source(dtype, std::move(shape), path, offset, nbytes,
                                                  std::move(strides), transpose, padding);
                source.scale = scale;
                store.add(name, std::move(source), type);
            },
            py::arg("name"), py::arg("dtype"), py::arg("shape"), py::arg("path"), py::arg("offset"),
            py::arg("nbytes"), py::arg("strides") = py::none(), py::arg("transpose") = false,
            py::arg("convert_to") = py::none(), py::arg("padding") = 0, py::arg("scale") = 1.0f,
            "Register a tensor of a file under its canonical name; nothing is read yet. The last "
            "`padding` columns of the shape are zeros, which the file has not.")
        .def("__contains__", &WeightStore::has, py::arg("name"))
        .def_property_readonly("owned_bytes", &WeightStore::owned_bytes,
                               "Bytes converted into memory of its own.")
        .def_property_readonly("mapped_bytes", &WeightStore::mapped_bytes,
                               "Bytes used in place from mapped files.")
        .def("first_not_finite", &WeightStore::first_not_finite,
             py::call_guard<py::gil_scoped_release>(),
             "Name of the first parameter that holds NaN or infinity, or None.");

    m.def(
        "transcode",
        [](const std::string& dtype, std::vector<int64_t> shape, const std::filesystem::path& path,
           uint64_t offset, uint64_t nbytes, std::optional<std::vector<int64_t>> strides,
           bool transpose, const std::filesystem::path& dst_path, uint64_t dst_offset,
           const std::string& dst_dtype, int threads,
           const std::vector<std::pair<std::shared_ptr<Adapter>, float>>& adapters,
           const std::string& parameter, int64_t padding, float scale) {
            TensorSource source = make_source(dtype, std::move(shape), path, offset, nbytes,
                                              std::move(strides), transpose, padding);
            source.scale = scale;
            Edit edit;
            if (!adapters.empty())
                edit = [&](std::vector<float>& values) {
                    for (const auto& [adapter, scale] : adapters)
                        adapter->apply(parameter, values, scale);
                };
            const py::gil_scoped_release release;
            return transcode(source, to_utf8(dst_path), dst_offset, DType::parse(dst_dtype),
                             threads, edit);
        },
        py::arg("dtype"), py::arg("shape"), py::arg("path"), py::arg("offset"), py::arg("nbytes"),
        py::arg("strides") = py::none(), py::arg("transpose") = false, py::kw_only(),
        py::arg("dst_path"), py::arg("dst_offset"), py::arg("dst_dtype"), py::arg("threads") = 0,
        py::arg("adapters") = py::list(), py::arg("parameter") = "", py::arg("padding") = 0,
        py::arg("scale") = 1.0f,
        "Convert one tensor and write it at an offset of an existing file; returns the bytes "
        "written. What `adapters` change in `parameter` is merged into the values.");

    m.def(
        "read_values",
        [](const std::string& dtype, std::vector<int64_t> shape, const std::filesystem::path& path,
           uint64_t offset, uint64_t nbytes, std::optional<std::vector<int64_t>> strides) {
            const TensorSource source = make_source(dtype, std::move(shape), path, offset, nbytes,
                                                    std::move(strides), false);
            if (source.shape.elements() > kMostValues)
                throw Error(ErrorKind::Parameter,
                            "read_values is for at most " + std::to_string(kMostValues) +
                                " values, not " + std::to_string(source.shape.elements()));
            source.validate("values");
            const MappedFile file{std::filesystem::path(source.path)};
            return source.read(file.bytes(source.offset, source.nbytes));
        },
        py::arg("dtype"), py::arg("shape"), py::arg("path"), py::arg("offset"), py::arg("nbytes"),
        py::arg("strides") = py::none(),
        "The values of a small tensor (at most 65536), in C order: marks and statistics by which "
        "models of the same shape are told apart.");

    m.def(
        "dtype_bytes",
        [](const std::string& dtype, int64_t elements) {
            const DType type = DType::parse(dtype);
            return std::make_tuple(type.block_elements(), type.bytes(elements));
        },
        py::arg("dtype"), py::arg("elements"),
        "(elements per block, bytes of `elements` values) of a type.");
}

}  // namespace sde::bindings
