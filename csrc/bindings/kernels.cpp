// The CPU kernels over numpy arrays, for tests and benchmarks.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/ggml_types.h"
#include "kernels/dispatch.h"
#include "kernels/fast/fast.h"

namespace sde::bindings {
namespace {

namespace py = pybind11;
using namespace sde::kernels;

// Never converted: a test passes exactly the memory that the kernel reads.
using Floats = py::array_t<float, py::array::c_style>;
using OptionalFloats = std::optional<Floats>;

[[noreturn]] void reject(const std::string& message) {
    throw Error(ErrorKind::Parameter, message);
}

// How a kernel is run: `isa` names a variant or a unit of Arithmetic::Fast. Every time taken is
// appended to `seconds` where given.
struct Run {
    int threads;
    std::optional<Unit> unit;
    Isa isa;
    int repeats;
    py::object seconds;

    Run(int threads, const std::string& isa, int repeats, py::object seconds)
        : threads(threads),
          unit(unit_named(isa)),
          isa(parse(unit && available(*unit) ? "auto" : isa)),
          repeats(repeats),
          seconds(std::move(seconds)) {
        if (threads < 1 || repeats < 1) reject("threads and repeats must be at least 1");
    }

    static Isa parse(const std::string& name) {
        if (name == "auto") return chosen_isa();
        const std::optional<Isa> isa = isa_named(name);
        if (isa && available(*isa)) return *isa;
        reject("isa '" + name + "' is not available here; see isas()");
    }

    template <class Op>
    void operator()(void (*KernelTable::*kernel)(const Op&, Team&), const Op& op) const {
        if (unit) reject(std::string("the unit ") + name_of(*unit) + " has no such kernel");
        (*this)(kernel_table(isa).*kernel, op);
    }

    template <class Op>
    void operator()(void (*KernelTable::*kernel)(const Op&, Team&),
                    void (*UnitTable::*unit_kernel)(const Op&, Team&), const Op& op) const {
        if (unit && unit_table(*unit).*unit_kernel)
            (*this)(unit_table(*unit).*unit_kernel, op);
        else
            (*this)(kernel, op);
    }

    template <class Op>
    void operator()(void (*kernel)(const Op&, Team&), const Op& op) const {
        std::vector<double> times(repeats);
        {
            py::gil_scoped_release release;
            TeamState state;
            const auto work = [&](int rank) {
                Team team(rank, threads, state);
                for (double& time : times) {
                    const auto start = std::chrono::steady_clock::now();
                    kernel(op, team);
                    const std::chrono::duration<double> taken =
                        std::chrono::steady_clock::now() - start;
                    if (rank == 0) time = taken.count();
                }
            };
            std::vector<std::thread> others;
            for (int rank = 1; rank < threads; ++rank) others.emplace_back(work, rank);
            work(0);
            for (std::thread& thread : others) thread.join();
        }
        if (!seconds.is_none())
            for (const double time : times) seconds.attr("append")(time);
    }
};

std::vector<std::string> units() {
    std::vector<std::string> names;
    for (const Unit unit : kUnits)
        if (available(unit)) names.emplace_back(name_of(unit));
    return names;
}

void expect_size(const char* name, const OptionalFloats& array, int64_t size) {
    if (array && array->size() != size)
        reject(std::string(name) + " has " + std::to_string(array->size()) +
               " elements; expected " + std::to_string(size));
}

void expect_axes(const char* name, const Floats& array, int axes) {
    if (array.ndim() != axes)
        reject(std::string(name) + " has " + std::to_string(array.ndim()) + " axes; expected " +
               std::to_string(axes));
}

const float* data_of(const OptionalFloats& array) {
    return array ? array->data() : nullptr;
}

Activation parse_activation(const std::string& name) {
    if (name == "none") return Activation::None;
    if (name == "silu") return Activation::Silu;
    if (name == "gelu") return Activation::Gelu;
    if (name == "gelu_tanh") return Activation::GeluTanh;
    if (name == "quick_gelu") return Activation::QuickGelu;
    if (name == "relu") return Activation::Relu;
    if (name == "leaky_relu") return Activation::LeakyRelu;
    reject("unknown activation '" + name + "'");
}

ConvMethod parse_method(const std::string& name) {
    if (name == "auto") return ConvMethod::Auto;
    if (name == "direct") return ConvMethod::Direct;
    if (name == "winograd") return ConvMethod::Winograd;
    reject("unknown convolution method '" + name + "'");
}

size_t bytes_of(ggml_type type, int64_t count) {
    const int64_t block = ggml_blck_size(type);
    if (count % block)
        reject("a " + std::string(ggml_type_name(type)) + " tensor holds whole blocks of " +
               std::to_string(block));
    return static_cast<size_t>(count / block) * ggml_type_size(type);
}

Weight weight_of(const py::buffer_info& bytes, const std::string& type_name, int64_t rows,
                 int64_t row_elements) {
    const ggml_type type = parse_ggml_type(type_name);
    const size_t expected = bytes_of(type, rows * row_elements),
                 found = static_cast<size_t>(bytes.size * bytes.itemsize);
    if (found != expected)
        reject("the weight has " + std::to_string(found) + " bytes; expected " +
               std::to_string(expected));
    return {bytes.ptr, type, rows, row_elements};
}

struct EpilogueArguments {
    OptionalFloats bias, batch_bias, residual;
    std::string activation;
    bool residual_inside = false;
    OptionalFloats gate = {};

    Epilogue over(int64_t batch, int64_t rows, int64_t channels) const {
        expect_size("bias", bias, channels);
        expect_size("batch_bias", batch_bias, batch * channels);
        expect_size("residual", residual, rows * channels);
        expect_size("gate", gate, batch * channels);
        return {
            data_of(bias),   data_of(batch_bias), data_of(residual), parse_activation(activation),
            residual_inside, data_of(gate),       channels};
    }
};

py::array_t<float> run_conv2d(const Floats& input, const py::buffer& weight,
                              const std::string& type, int64_t out_channels,
                              std::array<int, 2> kernel, int stride, std::array<int, 4> padding,
                              bool upsample2x, std::array<bool, 2> circular, OptionalFloats bias,
                              OptionalFloats batch_bias, OptionalFloats residual,
                              std::string activation, bool residual_inside,
                              const std::string& method, int threads, const std::string& isa,
                              int repeats, py::object seconds) {
    expect_axes("input", input, 4);
    const Run run(threads, isa, repeats, std::move(seconds));
    const py::buffer_info bytes = weight.request();
    Conv2d op{};
    op.input = input.data();
    op.batch = input.shape(0), op.height = input.shape(1), op.width = input.shape(2),
    op.in_channels = input.shape(3);
    op.weight = weight_of(bytes, type, out_channels, op.in_channels * kernel[0] * kernel[1]);
    op.kernel_h = kernel[0], op.kernel_w = kernel[1], op.stride = stride;
    op.pad_top = padding[0], op.pad_left = padding[1], op.pad_bottom = padding[2],
    op.pad_right = padding[3];
    op.upsample2x = upsample2x;
    op.method = parse_method(method);
    op.circular_x = circular[0], op.circular_y = circular[1];
    const int64_t scale = upsample2x ? 2 : 1;
    const int64_t spare_h = scale * op.height + padding[0] + padding[2] - kernel[0];
    const int64_t spare_w = scale * op.width + padding[1] + padding[3] - kernel[1];
    if (spare_h < 0 || spare_w < 0) reject("the input is smaller than the kernel");
    const int64_t out_height = spare_h / stride + 1, out_width = spare_w / stride + 1;
    const EpilogueArguments epilogue{std::move(bias), std::move(batch_bias), std::move(residual),
                                     std::move(activation), residual_inside};
    op.epilogue = epilogue.over(op.batch, op.batch * out_height * out_width, out_channels);
    py::array_t<float> output({op.batch, out_height, out_width, out_channels});
    op.output = output.mutable_data();
    if (run.unit && !is_product(op)) reject("units have 1x1 convolutions only");
    run(&KernelTable::conv2d, &UnitTable::conv2d, op);
    return output;
}

py::array_t<float> run_linear(const Floats& input, const py::buffer& weight,
                              const std::string& type, int64_t out_features, int64_t rows_per_batch,
                              OptionalFloats bias, OptionalFloats batch_bias,
                              OptionalFloats residual, std::string activation, OptionalFloats gate,
                              int threads, const std::string& isa, int repeats,
                              py::object seconds) {
    expect_axes("input", input, 2);
    const Run run(threads, isa, repeats, std::move(seconds));
    const py::buffer_info bytes = weight.request();
    Linear op{};
    op.input = input.data();
    op.rows = input.shape(0), op.in_features = input.shape(1), op.rows_per_batch = rows_per_batch;
    op.weight = weight_of(bytes, type, out_features, op.in_features);
    const EpilogueArguments epilogue{
        std::move(bias), std::move(batch_bias), std::move(residual), std::move(activation),
        false,           std::move(gate)};
    op.epilogue =
        epilogue.over(rows_per_batch > 0 ? (op.rows + rows_per_batch - 1) / rows_per_batch : 1,
                      op.rows, out_features);
    py::array_t<float> output({op.rows, out_features});
    op.output = output.mutable_data();
    run(&KernelTable::linear, &UnitTable::linear, op);
    return output;
}

py::array_t<float> run_attention(const Floats& q, const Floats& k, const Floats& v, int64_t heads,
                                 int64_t kv_heads, float scale, bool causal,
                                 const OptionalFloats& mask, float softcap,
                                 const OptionalFloats& distance_bias, int threads,
                                 const std::string& isa, int repeats, py::object seconds) {
    for (const Floats* array : {&q, &k, &v}) expect_axes("q, k, v", *array, 3);
    const Run run(threads, isa, repeats, std::move(seconds));
    Attention op{};
    op.q = q.data(), op.k = k.data(), op.v = v.data();
    op.batch = q.shape(0), op.q_len = q.shape(1), op.kv_len = k.shape(1);
    op.heads = heads, op.kv_heads = kv_heads;
    if (heads < 1 || kv_heads < 1 || heads % kv_heads || q.shape(2) % heads)
        reject("heads do not divide the width");
    op.head_dim = q.shape(2) / heads;
    expect_size("k", k, op.batch * op.kv_len * kv_heads * op.head_dim);
    expect_size("v", v, op.batch * op.kv_len * kv_heads * op.head_dim);
    op.q_token_stride = op.output_token_stride = q.shape(2);
    op.k_token_stride = op.v_token_stride = k.shape(2);
    op.q_batch_stride = op.output_batch_stride = op.q_len * q.shape(2);
    op.k_batch_stride = op.v_batch_stride = op.kv_len * k.shape(2);
    op.scale = scale, op.causal = causal, op.softcap = softcap;
    expect_size("distance_bias", distance_bias, heads * (op.q_len + op.kv_len - 1));
    op.distance_bias = data_of(distance_bias);
    if (mask) {
        const bool per_head = mask->ndim() == 4;
        expect_axes("mask", *mask, per_head ? 4 : 3);
        op.mask = mask->data(), op.mask_batch = mask->shape(0);
        op.mask_heads = per_head ? heads : 1;
        if (op.mask_batch != 1 && op.mask_batch != op.batch)
            reject("mask's batch is neither 1 nor the batch");
        expect_size("mask", mask, op.mask_batch * op.mask_heads * op.q_len * op.kv_len);
    }
    py::array_t<float> output({op.batch, op.q_len, static_cast<int64_t>(q.shape(2))});
    op.output = output.mutable_data();
    run(&KernelTable::attention, &UnitTable::attention, op);
    return output;
}

py::array_t<float> run_group_norm(const Floats& input, int64_t groups, const Floats& gamma,
                                  const Floats& beta, float eps, bool silu, int threads,
                                  const std::string& isa, int repeats, py::object seconds) {
    expect_axes("input", input, 3);
    const Run run(threads, isa, repeats, std::move(seconds));
    py::array_t<float> output({input.shape(0), input.shape(1), input.shape(2)});
    const GroupNorm op{input.data(),
                       output.mutable_data(),
                       input.shape(0),
                       input.shape(1),
                       input.shape(2),
                       groups,
                       eps,
                       gamma.data(),
                       beta.data(),
                       silu};
    if (groups < 1 || op.channels % groups) reject("groups do not divide the channels");
    expect_size("gamma", gamma, op.channels);
    expect_size("beta", beta, op.channels);
    run(&KernelTable::group_norm, op);
    return output;
}

py::array_t<float> run_layer_norm(const Floats& input, const OptionalFloats& gamma,
                                  const OptionalFloats& beta, float eps, float gamma_offset,
                                  int threads, const std::string& isa, int repeats,
                                  py::object seconds) {
    expect_axes("input", input, 2);
    const Run run(threads, isa, repeats, std::move(seconds));
    py::array_t<float> output({input.shape(0), input.shape(1)});
    const LayerNorm op{input.data(), output.mutable_data(), input.shape(0), input.shape(1),
                       eps,          data_of(gamma),        data_of(beta),  gamma_offset};
    expect_size("gamma", gamma, op.width);
    expect_size("beta", beta, op.width);
    run(&KernelTable::layer_norm, op);
    return output;
}

py::array_t<float> run_geglu(const Floats& input, int threads, const std::string& isa, int repeats,
                             py::object seconds) {
    expect_axes("input", input, 2);
    const Run run(threads, isa, repeats, std::move(seconds));
    if (input.shape(1) % 2) reject("geglu's input has an odd width");
    py::array_t<float> output({input.shape(0), input.shape(1) / 2});
    run(&KernelTable::geglu,
        Geglu{input.data(), output.mutable_data(), input.shape(0), input.shape(1) / 2});
    return output;
}

// GFLOP/s of multiply-adds in registers on one thread: the median of `repeats` short runs.
double peak_gflops(const std::string& isa, int repeats) {
    const KernelTable& table = kernel_table(Run::parse(isa));
    std::vector<double> rates;
    py::gil_scoped_release release;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        const auto operations = static_cast<double>(table.multiply_add(100000));
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        rates.push_back(operations / taken.count() * 1e-9);
    }
    std::nth_element(rates.begin(), rates.begin() + repeats / 2, rates.end());
    return rates[repeats / 2];
}

// float32 -> bytes of a ggml type, as rows of `width` elements.
py::bytes quantize(const Floats& values, const std::string& type_name, int64_t width) {
    const ggml_type type = parse_ggml_type(type_name);
    if (width < 1 || values.size() % width) reject("width does not divide the values");
    std::string bytes(bytes_of(type, width) * (values.size() / width), '\0');
    const std::vector<float> importance(width, 1.0f);
    ggml_quantize_chunk(type, values.data(), bytes.data(), 0, values.size() / width, width,
                        importance.data());
    return bytes;
}

py::array_t<float> dequantize(const py::buffer& bytes, const std::string& type_name,
                              int64_t count) {
    const py::buffer_info info = bytes.request();
    const Weight weight = weight_of(info, type_name, 1, count);
    py::array_t<float> values(count);
    if (weight.type == GGML_TYPE_F32)
        std::memcpy(values.mutable_data(), weight.data, count * sizeof(float));
    else
        ggml_get_type_traits(weight.type)->to_float(weight.data, values.mutable_data(), count);
    return values;
}

std::vector<std::string> isas() {
    std::vector<std::string> found;
    for (const Isa isa : kIsas)
        if (available(isa)) found.emplace_back(name_of(isa));
    return found;
}

}  // namespace

void bind_kernels(py::module_& m) {
    py::module_ k =
        m.def_submodule("kernels", "The CPU kernels over float32 arrays, channels last.");
    const auto threads = py::arg("threads") = 1;
    const auto isa = py::arg("isa") = "auto";
    const auto repeats = py::arg("repeats") = 1;
    const auto seconds = py::arg("seconds") = py::none();
    const auto bias = py::arg("bias") = py::none();
    const auto batch_bias = py::arg("batch_bias") = py::none();
    const auto residual = py::arg("residual") = py::none();
    const auto activation = py::arg("activation") = "none";
    k.def("isas", isas, "The variants that this processor can run, the widest last.");
    k.def("units", units, "The units of arithmetic=\"fast\" that this processor has.");
    k.def(
        "chosen_isa", [] { return name_of(chosen_isa()); },
        "The variant that operators run on; SDENGINE_CPU may name it.");
    k.def("peak_gflops", peak_gflops, py::arg("isa") = "auto", py::arg("repeats") = 9,
          "Multiply-add rate of one thread, in registers.");
    k.def("quantize", quantize, py::arg("values").noconvert(), py::arg("type"), py::arg("width"));
    k.def("dequantize", dequantize, py::arg("bytes"), py::arg("type"), py::arg("count"));
    k.def("conv2d", run_conv2d, py::arg("input").noconvert(), py::arg("weight"), py::arg("type"),
          py::arg("out_channels"), py::kw_only(), py::arg("kernel") = std::array{3, 3},
          py::arg("stride") = 1, py::arg("padding") = std::array{1, 1, 1, 1},
          py::arg("upsample2x") = false, py::arg("circular") = std::array{false, false}, bias,
          batch_bias, residual, activation, py::arg("residual_inside") = false,
          py::arg("method") = "auto", threads, isa, repeats, seconds,
          "Input [N, H, W, C]; padding top, left, bottom, right; circular x, y.");
    k.def("linear", run_linear, py::arg("input").noconvert(), py::arg("weight"), py::arg("type"),
          py::arg("out_features"), py::kw_only(), py::arg("rows_per_batch") = 0, bias, batch_bias,
          residual, activation, py::arg("gate") = py::none(), threads, isa, repeats, seconds);
    k.def("attention", run_attention, py::arg("q").noconvert(), py::arg("k").noconvert(),
          py::arg("v").noconvert(), py::kw_only(), py::arg("heads"), py::arg("kv_heads"),
          py::arg("scale"), py::arg("causal") = false, py::arg("mask") = py::none(),
          py::arg("softcap") = 0.0f, py::arg("distance_bias") = py::none(), threads, isa, repeats,
          seconds, "q, k, v: [batch, tokens, heads * head_dim].");
    k.def("group_norm", run_group_norm, py::arg("input").noconvert(), py::kw_only(),
          py::arg("groups"), py::arg("gamma"), py::arg("beta"), py::arg("eps") = 1e-5f,
          py::arg("silu") = false, threads, isa, repeats, seconds, "Input [N, pixels, C].");
    k.def("layer_norm", run_layer_norm, py::arg("input").noconvert(), py::kw_only(),
          py::arg("gamma") = py::none(), py::arg("beta") = py::none(), py::arg("eps") = 1e-5f,
          py::arg("gamma_offset") = 0.0f, threads, isa, repeats, seconds);
    k.def("geglu", run_geglu, py::arg("input").noconvert(), py::kw_only(), threads, isa, repeats,
          seconds);
    bind_ggml_linear(k);
}

}  // namespace sde::bindings
