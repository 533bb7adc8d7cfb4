// ggml's own matrix product over numpy arrays: what ours is measured against (bench/ops.py).
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/ggml_types.h"
#include "runtime/device.h"

namespace sde::bindings {
namespace {

namespace py = pybind11;
using Floats = py::array_t<float, py::array::c_style>;
using Context = std::unique_ptr<ggml_context, decltype(&ggml_free)>;
using Buffer = std::unique_ptr<ggml_backend_buffer, decltype(&ggml_backend_buffer_free)>;

[[noreturn]] void reject(const std::string& message) {
    throw Error(ErrorKind::Parameter, message);
}

Context new_context() {
    Context context(ggml_init({8 * ggml_tensor_overhead() + ggml_graph_overhead_custom(4, false),
                               nullptr, true}),
                    ggml_free);
    if (!context) throw Error(ErrorKind::OutOfMemory, "no memory for a graph's description");
    return context;
}

Buffer allocate(ggml_context* context, ggml_backend_buffer_type_t type) {
    Buffer buffer(ggml_backend_alloc_ctx_tensors_from_buft(context, type),
                  ggml_backend_buffer_free);
    if (!buffer) throw Error(ErrorKind::OutOfMemory, "no memory for a matrix product");
    return buffer;
}

// A buffer type that keeps weights in another order, if the processor has one for this product.
ggml_backend_buffer_type_t repacking(ggml_backend_dev_t device, ggml_tensor* weight,
                                     const ggml_tensor* product) {
    const auto extra =
        reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (auto* types = extra ? extra(device) : nullptr; types && *types; ++types) {
        // Whether it takes the product is asked of an empty buffer: the weights are not in one yet.
        const Buffer empty(ggml_backend_buft_alloc_buffer(*types, 0), ggml_backend_buffer_free);
        weight->buffer = empty.get();
        const bool takes = ggml_backend_dev_supports_op(device, product);
        weight->buffer = nullptr;
        if (takes) return *types;
    }
    reject(std::string(ggml_type_name(weight->type)) + " weights have no repacked form here");
}

py::array_t<float> run(const Floats& input, const py::buffer& weight_bytes, const std::string& type,
                       int64_t out_features, bool repacked, int threads, int repeats,
                       const py::object& seconds) {
    if (input.ndim() != 2 || out_features < 1 || threads < 1 || repeats < 1)
        reject("ggml_linear takes an input of 2 axes, and at least one feature, thread and repeat");
    const int64_t rows = input.shape(0), in_features = input.shape(1);
    const ggml_type kind = parse_ggml_type(type);
    if (in_features % ggml_blck_size(kind)) reject("the features are not whole blocks of " + type);

    const Context weights = new_context(), others = new_context();
    ggml_tensor* weight = ggml_new_tensor_2d(weights.get(), kind, in_features, out_features);
    const py::buffer_info bytes = weight_bytes.request();
    if (static_cast<size_t>(bytes.size * bytes.itemsize) != ggml_nbytes(weight))
        reject("the weight has other than " + std::to_string(ggml_nbytes(weight)) + " bytes");
    ggml_tensor* source = ggml_new_tensor_2d(others.get(), GGML_TYPE_F32, in_features, rows);
    ggml_tensor* product = ggml_mul_mat(others.get(), weight, source);

    const std::shared_ptr<Device> device = Device::cpu(threads);
    const ggml_backend_dev_t native = ggml_backend_get_device(device->backend());
    const ggml_backend_buffer_type_t plain = ggml_backend_dev_buffer_type(native);
    const Buffer weight_buffer =
        allocate(weights.get(), repacked ? repacking(native, weight, product) : plain);
    const Buffer other_buffer = allocate(others.get(), plain);
    ggml_backend_tensor_set(weight, bytes.ptr, 0, ggml_nbytes(weight));
    ggml_backend_tensor_set(source, input.data(), 0, ggml_nbytes(source));

    ggml_cgraph* graph = ggml_new_graph_custom(others.get(), 4, false);
    ggml_build_forward_expand(graph, product);
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        {
            py::gil_scoped_release release;
            device->compute(graph, threads, {});
        }
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        if (!seconds.is_none()) seconds.attr("append")(taken.count());
    }
    py::array_t<float> output({rows, out_features});
    ggml_backend_tensor_get(product, output.mutable_data(), 0, ggml_nbytes(product));
    return output;
}

}  // namespace

void bind_ggml_linear(py::module_& kernels) {
    kernels.def("ggml_linear", run, py::arg("input").noconvert(), py::arg("weight"),
                py::arg("type"), py::arg("out_features"), py::kw_only(),
                py::arg("repacked") = false, py::arg("threads") = 1, py::arg("repeats") = 1,
                py::arg("seconds") = py::none(),
                "ggml's own product of the same, for comparison; repacked: from its buffers of "
                "interleaved rows.");
}

}  // namespace sde::bindings
