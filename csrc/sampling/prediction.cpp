#include "sampling/prediction.h"

#include <cmath>
#include <map>

#include "base/error.h"

namespace sde::sampling {

Prediction Prediction::parse(const std::string& kind, PredictionOptions options) {
    static const std::map<std::string, Kind> kinds = {
        {"epsilon", Kind::Epsilon}, {"v_prediction", Kind::Velocity},     {"sample", Kind::Sample},
        {"edm", Kind::Edm},         {"edm_v_prediction", Kind::Velocity}, {"flow", Kind::Flow}};
    const auto it = kinds.find(kind);
    if (it == kinds.end())
        throw Error(
            ErrorKind::Parameter,
            "a prediction is epsilon, v_prediction, sample, edm or flow, not '" + kind + "'");
    const float sigma_data = options.sigma_data.value_or(it->second == Kind::Edm ? 0.5f : 1.0f);
    if (!(sigma_data > 0.0f && std::isfinite(sigma_data)))
        throw Error(ErrorKind::Parameter,
                    "sigma_data must be above 0, not " + std::to_string(sigma_data));
    const bool over_betas = it->second != Kind::Edm && it->second != Kind::Flow;
    if (options.boundary && !(over_betas && options.boundary->kind() == NoiseLevels::Kind::Betas))
        throw Error(
            ErrorKind::Parameter,
            "boundary scalings are of latent consistency models over betas, not of " + kind);
    return Prediction(it->second, sigma_data, std::move(options.boundary));
}

float Prediction::input_scale(float sigma) const {
    if (kind_ == Kind::Flow) return 1.0f;
    return 1.0f / std::sqrt(sigma * sigma + sigma_data_ * sigma_data_);
}

float Prediction::latents_scale(float sigma) const {
    return kind_ == Kind::Flow ? 1.0f - sigma : 1.0f;
}

void Prediction::denoise(std::span<const float> x, std::span<const float> output, float sigma,
                         std::span<float> denoised) const {
    // denoised = from_x * x + from_output * output
    const float data = sigma_data_ * sigma_data_, variance = sigma * sigma + data;
    float from_x = 0.0f, from_output = 1.0f;
    if (kind_ == Kind::Epsilon || kind_ == Kind::Flow) {
        from_x = 1.0f;
        from_output = -sigma;
    } else if (kind_ == Kind::Velocity || kind_ == Kind::Edm) {
        const float sign = kind_ == Kind::Edm ? 1.0f : -1.0f;
        from_x = data / variance;
        from_output = sign * sigma * sigma_data_ / std::sqrt(variance);
    }
    if (boundary_) {
        // Time counts ten times, and the data's deviation is 0.5 (the paper's code, and diffusers'
        // LCMScheduler). What is kept of x is kept of the network's input.
        const float time = 10.0f * boundary_->timestep(sigma), squares = time * time + 0.25f;
        const float skip = 0.25f / squares, out = time / std::sqrt(squares);
        from_x = out * from_x + skip * input_scale(sigma);
        from_output *= out;
    }
    for (size_t i = 0; i < x.size(); ++i) denoised[i] = from_x * x[i] + from_output * output[i];
}

}  // namespace sde::sampling
