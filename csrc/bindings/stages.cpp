#include <pybind11/stl.h>

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
                                   int64_t tile, int64_t overlap, const CancelToken* cancel) {
    const HostArray input = to_host(array);
    const HostArray output = without_gil(cancel, [&](const CancelCheck& check) {
        return stage(network, input, factor, {tile, overlap}, check);
    });
    return to_numpy(output.floats, output.shape);
}

using NamedArrays = std::map<std::string, py::array>;

HostArrays to_host_arrays(const NamedArrays& arrays) {
    HostArrays out;
    for (const auto& [name, array] : arrays) out[name] = to_host(array);
    return out;
}

std::unique_ptr<DenoiseRun> make_run(
    std::shared_ptr<Runner> denoiser, const std::string& sampler, const FloatArray& x,
    const sampling::Schedule& schedule, const sampling::NoiseLevels& levels,
    const std::string& prediction, const std::vector<uint64_t>& seeds,
    const std::string& noise_state, const NamedArrays& positive, const NamedArrays& negative,
    const std::optional<FloatArray>& extra_channels, float guidance_scale, float guidance_rescale,
    std::optional<float> eta) {
    Conditions conditions{to_host_arrays(positive), to_host_arrays(negative), {}};
    if (extra_channels) conditions.extra_channels = to_host(*extra_channels);
    const HostArray start = to_host(x);
    if (seeds.empty() || start.floats.empty() || start.floats.size() % seeds.size() != 0)
        throw Error(ErrorKind::Parameter, "one seed per picture is needed");
    sampling::NormalSource noise(seeds);
    if (!noise_state.empty()) noise.restore(noise_state);
    auto made =
        sampling::make_sampler(sampler, start.floats, schedule.sigmas, std::move(noise),
                               {eta, 1.0f, std::make_shared<const sampling::NoiseLevels>(levels)});
    return std::make_unique<DenoiseRun>(
        std::move(denoiser), std::move(conditions), sampling::Prediction::parse(prediction),
        Guidance{guidance_scale, guidance_rescale}, levels, schedule, start.shape, std::move(made));
}

py::array_t<float> latents(const DenoiseRun& run, std::span<const float> values) {
    return to_numpy({values.begin(), values.end()}, run.latents());
}

void bind_denoise(py::module_& m) {
    py::class_<DenoiseRun>(m, "DenoiseRun", "One generation's denoising, step by step.")
        .def(py::init(&make_run), py::arg("denoiser"), py::kw_only(), py::arg("sampler"),
             py::arg("x"), py::arg("schedule"), py::arg("levels"), py::arg("prediction"),
             py::arg("seeds"), py::arg("noise_state") = "", py::arg("positive"),
             py::arg("negative"), py::arg("extra_channels") = py::none(),
             py::arg("guidance_scale") = 1.0f, py::arg("guidance_rescale") = 0.0f,
             py::arg("eta") = py::none())
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
        .def("save", [](const DenoiseRun& r) { return py::bytes(r.save()); })
        .def("restore", &DenoiseRun::restore, py::arg("state"));
}

}  // namespace

void bind_stages(py::module_& m) {
    bind_denoise(m);
    m.def("decode_latents", run_autoencoder<decode_latents>, py::arg("decoder"), py::arg("latents"),
          py::arg("factor"), py::arg("tile") = 0, py::arg("overlap") = 0,
          py::arg("cancel") = nullptr,
          "Latents [N, C, h, w] (unscaled) to pictures [N, 3, h * factor, w * factor]; tile 0 "
          "means one piece.");
    m.def("encode_image", run_autoencoder<encode_image>, py::arg("encoder"), py::arg("image"),
          py::arg("factor"), py::arg("tile") = 0, py::arg("overlap") = 0,
          py::arg("cancel") = nullptr,
          "Pictures [N, 3, H, W] to moments [N, 2 C, H / factor, W / factor]; tile 0 means one "
          "piece.");
}

}  // namespace sde::bindings
