#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <limits>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "sampling/brownian.h"
#include "sampling/noise_levels.h"
#include "sampling/sampler.h"

namespace py = pybind11;

namespace sde::bindings {
namespace {

using namespace sampling;

py::array_t<float> normal(const std::vector<int64_t>& shape, uint64_t seed,
                          const std::string& kind) {
    for (int64_t size : shape)
        if (size < 0) throw Error(ErrorKind::Parameter, "a shape has no negative sizes");
    std::vector<float> values(static_cast<size_t>(Shape(shape).elements()));
    {
        const py::gil_scoped_release release;
        NormalSource({seed}, kind).fill(values);
    }
    return to_numpy(values, Shape(shape));
}

py::array_t<float> brownian_increment(BrownianTree& tree, double from, double to) {
    std::vector<float> values(tree.size());
    {
        const py::gil_scoped_release release;
        tree.increment(from, to, values);
    }
    return to_numpy(values, Shape{static_cast<int64_t>(values.size())});
}

py::array_t<float> brownian_noise(BrownianNoise& noise, float sigma, float next,
                                  const std::vector<int64_t>& shape) {
    std::vector<float> values(static_cast<size_t>(Shape(shape).elements()));
    {
        const py::gil_scoped_release release;
        noise.fill(sigma, next, values);
    }
    return to_numpy(values, Shape(shape));
}

void bind_brownian(py::module_& m) {
    m.def("seed_sequence_word", seed_sequence_word, py::arg("entropy"), py::arg("spawn_key"));
    py::class_<BrownianTree>(m, "BrownianTree", "A Brownian path that is a function of its seed.")
        .def(py::init<uint64_t, double, double, size_t, const std::string&>(), py::arg("seed"),
             py::arg("start"), py::arg("end"), py::arg("size"), py::arg("kind") = "torch-cpu")
        .def("increment", brownian_increment, py::arg("start"), py::arg("end"));
    py::class_<BrownianNoise>(m, "BrownianNoise", "Unit noise from one Brownian path per picture.")
        .def(py::init<const std::vector<uint64_t>&, double, double, size_t, const std::string&>(),
             py::arg("seeds"), py::arg("sigma_min"), py::arg("sigma_max"), py::arg("size"),
             py::arg("kind") = "torch-cpu")
        .def("normal", brownian_noise, py::arg("sigma"), py::arg("next"), py::arg("shape"),
             "Float32 noise [N, ...] for the step sigma -> next.");
}

// A sampler over a Python callable; remembers the shape of x.
class PythonSampler {
  public:
    PythonSampler(const std::string& name, const FloatArray& x, const FloatArray& sigmas,
                  const std::vector<uint64_t>& seeds, std::optional<float> eta, float s_noise,
                  const std::string& noise, std::optional<NoiseLevels> model, bool flow,
                  std::optional<bool> brownian, std::optional<int> order, float s_churn,
                  float s_tmin, float s_tmax)
        : shape_(shape_of(x)) {
        std::vector<float> values(x.data(), x.data() + x.size());
        std::vector<float> levels(sigmas.data(), sigmas.data() + sigmas.size());
        if (seeds.empty() || shape_.rank() == 0 || values.empty() ||
            values.size() % seeds.size() != 0)
            throw Error(ErrorKind::Parameter, "x " + shape_.text() + " cannot be parted into " +
                                                  std::to_string(seeds.size()) + " pictures");
        SamplerOptions options{.eta = eta,
                               .s_noise = s_noise,
                               .flow = flow,
                               .brownian = brownian,
                               .order = order,
                               .churn = {s_churn, s_tmin, s_tmax}};
        if (model) options.levels = std::make_shared<const NoiseLevels>(std::move(*model));
        sampler_ = make_sampler(name, std::move(values), std::move(levels),
                                NormalSource(seeds, noise), std::move(options));
    }

    // The callable returns the estimate, or a pair of it and the estimate without guidance.
    void step(const py::function& denoiser) {
        sampler_->step([&](std::span<const float> x, float sigma, std::span<float> denoised,
                           std::span<float> unguided) {
            const py::object result = denoiser(array(x), sigma);
            const bool pair = py::isinstance<py::tuple>(result) && py::len(result) == 2;
            if (!unguided.empty() && !pair)
                throw Error(ErrorKind::Parameter,
                            "CFG++ samplers read the estimate without guidance too: the denoiser "
                            "must return a pair (denoised, unguided)");
            copy(pair ? result[py::int_(0)] : result, denoised);
            if (!unguided.empty()) copy(result[py::int_(1)], unguided);
        });
    }

    py::array_t<float> array(std::span<const float> values) const {
        return to_numpy({values.begin(), values.end()}, shape_);
    }
    Sampler& get() { return *sampler_; }

  private:
    void copy(const py::object& result, std::span<float> to) const {
        const FloatArray values(result);
        if (!(shape_of(values) == shape_))
            throw Error(ErrorKind::Parameter, "the denoiser returned an array of shape " +
                                                  shape_of(values).text() + " for x " +
                                                  shape_.text());
        std::copy(values.data(), values.data() + values.size(), to.begin());
    }

    Shape shape_;
    std::unique_ptr<Sampler> sampler_;
};

}  // namespace

void bind_sampling(py::module_& m) {
    bind_brownian(m);
    m.def("normal", normal, py::arg("shape"), py::arg("seed"), py::arg("kind") = "torch-cpu",
          "What torch.randn(shape) gives with torch's CPU or CUDA generator seeded with `seed`.");
    m.def("sampler_names", sampler_names);
    m.def("reads_unguided", reads_unguided, py::arg("sampler"),
          "True for samplers that need the estimate without guidance too (CFG++).");

    py::class_<NormalSource>(m, "NormalSource", "Noise with one generator per picture.")
        .def(py::init<const std::vector<uint64_t>&, const std::string&>(), py::arg("seeds"),
             py::arg("kind") = "torch-cpu")
        .def(
            "normal",
            [](NormalSource& source, const std::vector<int64_t>& shape) {
                std::vector<float> values(static_cast<size_t>(Shape(shape).elements()));
                source.fill(values);
                return to_numpy(values, Shape(shape));
            },
            py::arg("shape"),
            "Float32 noise [N, ...], entry i from generator i; the next call continues.")
        .def("save", [](const NormalSource& source) { return py::bytes(source.save()); });

    py::class_<PythonSampler>(m, "Sampler",
                              "A sampler over a Python callable (x, sigma) -> denoised.")
        .def(py::init<const std::string&, const FloatArray&, const FloatArray&,
                      const std::vector<uint64_t>&, std::optional<float>, float, const std::string&,
                      std::optional<NoiseLevels>, bool, std::optional<bool>, std::optional<int>,
                      float, float, float>(),
             py::arg("name"), py::arg("x"), py::arg("sigmas"), py::arg("seeds"),
             py::arg("eta") = py::none(), py::arg("s_noise") = 1.0f, py::arg("noise") = "torch-cpu",
             py::arg("levels") = py::none(), py::arg("flow") = false,
             py::arg("brownian") = py::none(), py::arg("order") = py::none(),
             py::arg("s_churn") = 0.0f, py::arg("s_tmin") = 0.0f,
             py::arg("s_tmax") = std::numeric_limits<float>::infinity())
        .def("step", &PythonSampler::step, py::arg("denoiser"))
        .def_property_readonly("x", [](PythonSampler& s) { return s.array(s.get().x()); })
        .def_property_readonly("denoised",
                               [](PythonSampler& s) { return s.array(s.get().denoised()); })
        .def_property_readonly("sigma", [](PythonSampler& s) { return s.get().sigma(); })
        .def_property_readonly("index", [](PythonSampler& s) { return s.get().index(); })
        .def_property_readonly("done", [](PythonSampler& s) { return s.get().done(); })
        .def("save", [](PythonSampler& s) { return py::bytes(s.get().save()); })
        .def(
            "restore", [](PythonSampler& s, const std::string& state) { s.get().restore(state); },
            py::arg("state"));
}

}  // namespace sde::bindings
