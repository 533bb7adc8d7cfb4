#include <pybind11/stl.h>

#include <array>
#include <limits>

#include "base/cancel.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/interrupt.h"
#include "stages/autoencode.h"
#include "stages/denoise.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

using Stage = HostArray (*)(Runner&, const HostArray&, int64_t, const Tiling&, const CancelCheck&);

template <Stage stage>
py::array_t<float> run_autoencoder(Runner& network, const FloatArray& array, int64_t factor,
                                   int64_t tile, int64_t overlap, int64_t circular,
                                   const CancelToken* cancel) {
    const HostArray input = to_host(array);
    HostArray output = without_gil(cancel, [&](const CancelCheck& check) {
        return stage(network, input, factor, {tile, overlap, circular}, check);
    });
    return moved_to_numpy(std::move(output.floats), output.shape);
}

py::array_t<float> run_upscaler(Runner& network, const FloatArray& array, int64_t factor,
                                int64_t grid, int64_t tile, int64_t overlap,
                                const CancelToken* cancel) {
    const HostArray input = to_host(array);
    HostArray output = without_gil(cancel, [&](const CancelCheck& check) {
        return upscale_image(network, input, factor, grid, {tile, overlap, 0}, check);
    });
    return moved_to_numpy(std::move(output.floats), output.shape);
}

using NamedArrays = std::map<std::string, py::array>;

HostArrays to_host_arrays(const NamedArrays& arrays) {
    HostArrays out;
    for (const auto& [name, array] : arrays) out[name] = to_host(array);
    return out;
}

Branch make_branch(const std::string& role, const NamedArrays& inputs, float weight,
                   const std::optional<FloatArray>& extra_channels,
                   const std::optional<std::vector<int64_t>>& lengths) {
    Branch branch{Branch::parse(role), to_host_arrays(inputs), weight, {}};
    if (extra_channels) branch.extra_channels = to_host(*extra_channels);
    if (!lengths) return branch;
    const auto context = branch.inputs.find("context");
    if (context == branch.inputs.end() || lengths->empty())
        throw Error(ErrorKind::Parameter,
                    "lengths are those of a branch's 'context', one per picture");
    context->second.lengths = *lengths;
    return branch;
}

Control make_control(std::shared_ptr<Runner> network, const NamedArrays& inputs,
                     std::vector<float> weights, std::map<std::string, float> factors,
                     bool positive_only, bool pooled,
                     std::optional<std::vector<std::string>> shared) {
    Control control{std::move(network), to_host_arrays(inputs), std::move(weights),
                    std::move(factors), positive_only,          pooled};
    if (shared) control.shared = std::move(*shared);
    return control;
}

using Phases = std::vector<std::pair<int, std::vector<std::shared_ptr<Branch>>>>;
using CacheFigures = std::tuple<int, float, std::vector<int>>;  // interval, threshold, fresh
using Tiles = std::tuple<int64_t, int64_t, std::string>;        // size, overlap, weights
// Original, noise, mask, and whether the mask is a strength.
using BlendArrays = std::tuple<FloatArray, FloatArray, FloatArray, bool>;

std::unique_ptr<DenoiseRun> make_run(
    std::shared_ptr<Runner> denoiser, const std::string& sampler, const FloatArray& x,
    const sampling::Schedule& schedule, const sampling::NoiseLevels& levels,
    const sampling::Prediction& prediction, const std::vector<uint64_t>& seeds,
    const std::string& noise_state, const std::string& noise, Phases phases,
    const sampling::Guidance& guidance, std::optional<float> eta, float s_noise,
    std::optional<bool> brownian, std::optional<int> order, const std::array<float, 3>& churn,
    const std::optional<BlendArrays>& blend, const networks::Options& run_options, int64_t together,
    const std::vector<Control>& controls, const std::optional<Tiles>& tiles,
    const std::optional<CacheFigures>& cache) {
    if (together < 0) throw Error(ErrorKind::Parameter, "together is 0 or more");
    const HostArray start = to_host(x);
    if (seeds.empty() || start.floats.empty() || start.floats.size() % seeds.size() != 0)
        throw Error(ErrorKind::Parameter, "one seed per picture is needed");
    sampling::NormalSource source(seeds, noise);
    if (!noise_state.empty()) source.restore(noise_state);
    sampling::SamplerOptions options{
        .eta = eta,
        .s_noise = s_noise,
        .levels = std::make_shared<const sampling::NoiseLevels>(levels),
        .flow = levels.kind() == sampling::NoiseLevels::Kind::Flow,
        .brownian = brownian,
        .order = order,
        .churn = {churn[0], churn[1], churn[2]}};
    const auto make_sampler = [=] {
        return sampling::make_sampler(sampler, start.floats, schedule.sigmas, source, options);
    };
    auto setup = std::make_shared<DenoiseSetup>(DenoiseSetup{std::move(denoiser),
                                                             prediction,
                                                             levels,
                                                             schedule,
                                                             start.shape,
                                                             make_sampler,
                                                             {},
                                                             guidance,
                                                             {},
                                                             run_options,
                                                             together,
                                                             controls,
                                                             {}});
    for (auto& [until, branches] : phases)
        setup->phases.push_back({until, {branches.begin(), branches.end()}});
    if (blend) {
        const auto& [original, kept_noise, mask, differential] = *blend;
        setup->blend = Blend{to_host(original), to_host(kept_noise), to_host(mask), differential};
    }
    if (tiles) {
        const auto& [size, overlap, weights] = *tiles;
        setup->tiles = TiledDiffusion{size, overlap, TiledDiffusion::parse(weights)};
    }
    if (cache) setup->cache = std::make_from_tuple<CacheSettings>(*cache);
    return std::make_unique<DenoiseRun>(std::move(setup));
}

py::array_t<float> latents(const DenoiseRun& run, std::span<const float> values) {
    return to_numpy({values.begin(), values.end()}, run.latents());
}

void bind_denoise(py::module_& m) {
    py::class_<DenoiseRun>(m, "DenoiseRun", "One generation's denoising, step by step.")
        .def(py::init(&make_run), py::arg("denoiser"), py::kw_only(), py::arg("sampler"),
             py::arg("x"), py::arg("schedule"), py::arg("levels"), py::arg("prediction"),
             py::arg("seeds"), py::arg("noise_state") = "", py::arg("noise") = "torch-cpu",
             py::arg("phases"), py::arg("guidance") = sampling::Guidance{},
             py::arg("eta") = py::none(), py::arg("s_noise") = 1.0f,
             py::arg("brownian") = py::none(), py::arg("order") = py::none(),
             py::arg("churn") = std::array{0.0f, 0.0f, std::numeric_limits<float>::infinity()},
             py::arg("blend") = py::none(), py::arg("options") = networks::Options{},
             py::arg("together") = 0, py::arg("controls") = std::vector<Control>{},
             py::arg("tiles") = py::none(), py::arg("cache") = py::none())
        .def(
            "step",
            [](DenoiseRun& run, const CancelToken* cancel) {
                without_gil(cancel, [&](const CancelCheck& check) { run.step(check); });
            },
            py::arg("cancel") = nullptr)
        .def_property_readonly("latents",
                               [](const DenoiseRun& r) { return latents(r, r.sampler().x()); })
        .def_property_readonly(
            "denoised", [](const DenoiseRun& r) { return latents(r, r.sampler().denoised()); })
        .def_property_readonly("sigma", [](const DenoiseRun& r) { return r.sampler().sigma(); })
        .def_property_readonly("index", [](const DenoiseRun& r) { return r.sampler().index(); })
        .def_property_readonly("steps", [](const DenoiseRun& r) { return r.sampler().steps(); })
        .def_property_readonly("done", [](const DenoiseRun& r) { return r.sampler().done(); })
        .def_property_readonly("evaluations", &DenoiseRun::evaluations)
        .def_property_readonly("reused", &DenoiseRun::reused)
        .def("save", [](const DenoiseRun& r) { return py::bytes(r.save()); })
        .def("restore", &DenoiseRun::restore, py::arg("state"))
        .def("fork", &DenoiseRun::fork, "A run of its own that continues bit for bit.")
        .def(
            "set_latents",
            [](DenoiseRun& r, const FloatArray& values) { r.set_latents(to_host(values)); },
            py::arg("latents"), "Replace the latents between two steps.");
}

using IntervalPair = std::pair<float, float>;
using LayerFigures = std::tuple<std::vector<std::string>, float, IntervalPair>;

sampling::LayerGuidance layer_guidance(const LayerFigures& figures) {
    const auto& [layers, scale, interval] = figures;
    return {layers, scale, {interval.first, interval.second}};
}

sampling::Guidance make_guidance(std::vector<float> scales, IntervalPair interval, float rescale,
                                 float image_scale,
                                 const std::optional<std::tuple<float, float, float>>& projection,
                                 const std::optional<std::pair<float, float>>& threshold,
                                 const std::optional<std::pair<float, float>>& mimic,
                                 const std::optional<LayerFigures>& skip,
                                 const std::optional<LayerFigures>& perturb,
                                 const std::optional<std::tuple<float, float, float>>& nag,
                                 std::optional<int> zero_steps, int token_side, bool row_norms) {
    sampling::Guidance guidance;
    guidance.scales = std::move(scales);
    guidance.interval = {interval.first, interval.second};
    guidance.rescale = rescale;
    guidance.image_scale = image_scale;
    guidance.token_side = token_side;
    if (projection)
        guidance.projection = std::make_from_tuple<sampling::AdaptiveProjection>(*projection);
    if (threshold) guidance.threshold = {threshold->first, threshold->second};
    if (mimic) guidance.mimic = {mimic->first, mimic->second};
    if (skip) guidance.skip = layer_guidance(*skip);
    if (perturb) guidance.perturb = layer_guidance(*perturb);
    if (nag) guidance.nag = std::make_from_tuple<sampling::NormalizedAttention>(*nag);
    if (zero_steps) guidance.zero_star = {*zero_steps};
    guidance.row_norms = row_norms;
    guidance.check();
    return guidance;
}

void bind_guidance(py::module_& m) {
    py::class_<sampling::Guidance>(m, "Guidance", "How several conditions become one estimate.")
        .def(py::init(&make_guidance), py::kw_only(), py::arg("scales") = std::vector<float>{1.0f},
             py::arg("interval") = IntervalPair{0.0f, 1.0f}, py::arg("rescale") = 0.0f,
             py::arg("image_scale") = 1.0f, py::arg("projection") = py::none(),
             py::arg("threshold") = py::none(), py::arg("mimic") = py::none(),
             py::arg("skip") = py::none(), py::arg("perturb") = py::none(),
             py::arg("nag") = py::none(), py::arg("zero_steps") = py::none(),
             py::arg("token_side") = 0, py::arg("row_norms") = false);
    py::class_<Branch, std::shared_ptr<Branch>>(
        m, "Branch", "One condition: its inputs, with one entry per picture.")
        .def(py::init(&make_branch), py::arg("role"), py::arg("inputs"), py::arg("weight") = 1.0f,
             py::arg("extra_channels") = py::none(), py::arg("lengths") = py::none());
    py::class_<Control>(m, "Control", "Residuals for the denoiser, with one entry per picture.")
        .def(py::init(&make_control), py::arg("network").none(true), py::arg("inputs"),
             py::arg("weights"), py::kw_only(), py::arg("factors") = std::map<std::string, float>{},
             py::arg("positive_only") = false, py::arg("pooled") = false,
             py::arg("shared") = py::none());
}

}  // namespace

void bind_stages(py::module_& m) {
    bind_guidance(m);
    bind_denoise(m);
    m.def("decode_latents", run_autoencoder<decode_latents>, py::arg("decoder"), py::arg("latents"),
          py::arg("factor"), py::arg("tile") = 0, py::arg("overlap") = 0, py::arg("circular") = 0,
          py::arg("cancel") = nullptr,
          "Latents [N, C, h, w] (unscaled) to pictures [N, 3, h * factor, w * factor]; tile 0 "
          "means one piece; circular bit 1 wraps x around, bit 2 y.");
    m.def(
        "encode_image", run_autoencoder<encode_image>, py::arg("encoder"), py::arg("image"),
        py::arg("factor"), py::arg("tile") = 0, py::arg("overlap") = 0, py::arg("circular") = 0,
        py::arg("cancel") = nullptr,
        "Pictures [N, 3, H, W] to moments [N, 2 C, H / factor, W / factor] or latents [N, C, ...]; "
        "tile 0 means one piece; circular bit 1 wraps x around, bit 2 y.");
    m.def("upscale_image", run_upscaler, py::arg("upscaler"), py::arg("image"), py::arg("factor"),
          py::arg("grid") = 1, py::arg("tile") = 0, py::arg("overlap") = 0,
          py::arg("cancel") = nullptr,
          "Pictures [N, C, H, W] to [N, C, H * factor, W * factor]; tile and overlap in squares of "
          "`grid` points of the input, tile 0 means one piece.");
}

}  // namespace sde::bindings
