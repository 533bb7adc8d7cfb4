#include "stages/denoise.h"

#include <cmath>

#include "base/error.h"

namespace sde {
namespace {

// Entries of b behind those of a, along the first axis.
HostArray stack(const HostArray& a, const HostArray& b, const std::string& name) {
    std::vector<int64_t> dims = a.shape.dims();
    if (!(a.shape == b.shape))
        throw Error(ErrorKind::Parameter, "the positive and the negative '" + name +
                                              "' must have one shape, not " + a.shape.text() +
                                              " and " + b.shape.text());
    dims[0] *= 2;
    HostArray out{Shape(dims), a.floats, a.ids};
    out.floats.insert(out.floats.end(), b.floats.begin(), b.floats.end());
    out.ids.insert(out.ids.end(), b.ids.begin(), b.ids.end());
    return out;
}

float deviation(std::span<const float> values) {
    double sum = 0.0, squares = 0.0;
    for (float v : values) sum += v;
    const double mean = sum / static_cast<double>(values.size());
    for (float v : values) squares += (v - mean) * (v - mean);
    return static_cast<float>(std::sqrt(squares / static_cast<double>(values.size())));
}

}  // namespace

DenoiseRun::DenoiseRun(std::shared_ptr<Runner> denoiser, Conditions conditions,
                       sampling::Prediction prediction, Guidance guidance,
                       sampling::NoiseLevels levels, const sampling::Schedule& schedule,
                       Shape latents, std::unique_ptr<sampling::Sampler> sampler)
    : denoiser_(std::move(denoiser)),
      inputs_(std::move(conditions.positive)),
      extra_channels_(std::move(conditions.extra_channels)),
      prediction_(prediction),
      guidance_(guidance),
      levels_(std::move(levels)),
      schedule_(schedule),
      latents_(std::move(latents)),
      sampler_(std::move(sampler)),
      guided_(!conditions.negative.empty() && guidance.scale != 1.0f) {
    if (latents_.rank() != 4 || static_cast<size_t>(latents_.elements()) != sampler_->x().size())
        throw Error(ErrorKind::Parameter,
                    "latents of shape " + latents_.text() + " do not fit the sampler");
    if (!guided_) return;
    for (auto& [name, array] : inputs_) {
        auto it = conditions.negative.find(name);
        if (it == conditions.negative.end())
            throw Error(ErrorKind::Parameter, "guidance needs a negative '" + name + "'");
        array = stack(array, it->second, name);
    }
}

void DenoiseRun::step(const CancelCheck& cancel) {
    if (cancel && cancel()) throw Error(ErrorKind::Cancelled, "the run was cancelled");
    sampler_->step(
        [&](std::span<const float> x, float sigma, std::span<float> denoised,
            std::span<float> unguided) { denoise(x, sigma, denoised, unguided, cancel); });
}

float DenoiseRun::timestep(float sigma) const {
    for (size_t i = 0; i < schedule_.timesteps.size(); ++i)
        if (schedule_.sigmas[i] == sigma) return schedule_.timesteps[i];
    return levels_.timestep(sigma);
}

void DenoiseRun::denoise(std::span<const float> x, float sigma, std::span<float> denoised,
                         std::span<float> unguided, const CancelCheck& cancel) {
    const int64_t batch = latents_[0], copies = guided_ ? 2 : 1;
    const int64_t size = latents_.elements() / batch;
    const int64_t extra =
        extra_channels_.floats.empty() ? 0 : extra_channels_.shape.elements() / batch;
    const int64_t channels = latents_[1] + (extra ? extra_channels_.shape[1] : 0);

    HostArrays inputs = inputs_;
    HostArray& input = inputs["latents"];
    input.shape = Shape{copies * batch, channels, latents_[2], latents_[3]};
    const float scale = prediction_.input_scale(sigma);
    for (int64_t n = 0; n < copies * batch; ++n) {
        for (int64_t i = 0; i < size; ++i)
            input.floats.push_back(x[(n % batch) * size + i] * scale);
        const auto behind = extra_channels_.floats.begin() + (n % batch) * extra;
        input.floats.insert(input.floats.end(), behind, behind + extra);
    }
    HostArray& times = inputs["timesteps"];
    times.shape = Shape{copies * batch};
    times.floats.assign(static_cast<size_t>(copies * batch), timestep(sigma));

    const HostArrays outputs = denoiser_->run(inputs, {}, cancel);
    const std::vector<float>& output = outputs.at("prediction").floats;
    if (output.size() != x.size() * static_cast<size_t>(copies))
        throw Error(ErrorKind::Weights, "the denoiser returned " +
                                            outputs.at("prediction").shape.text() +
                                            " for latents of " + latents_.text());
    ++evaluations_;
    if (!unguided.empty())
        prediction_.denoise(x, std::span(output).last(x.size()), sigma, unguided);
    if (!guided_) return prediction_.denoise(x, output, sigma, denoised);
    std::vector<float> combined(x.size());
    const std::span<const float> both(output);
    guide(both.first(x.size()), both.last(x.size()), combined);
    prediction_.denoise(x, combined, sigma, denoised);
}

void DenoiseRun::guide(std::span<const float> positive, std::span<const float> negative,
                       std::span<float> out) const {
    for (size_t i = 0; i < out.size(); ++i)
        out[i] = negative[i] + guidance_.scale * (positive[i] - negative[i]);
    if (guidance_.rescale == 0.0f) return;
    const size_t size = out.size() / static_cast<size_t>(latents_[0]);
    for (size_t at = 0; at < out.size(); at += size) {
        const float wanted = deviation(positive.subspan(at, size)),
                    found = deviation(out.subspan(at, size));
        const float factor =
            1.0f - guidance_.rescale + guidance_.rescale * (found > 0.0f ? wanted / found : 1.0f);
        for (float& value : out.subspan(at, size)) value *= factor;
    }
}

}  // namespace sde
