#include "sampling/prediction.h"

#include <cmath>

#include "base/error.h"

namespace sde::sampling {

Prediction Prediction::parse(const std::string& kind) {
    if (kind == "epsilon") return Prediction(Kind::Epsilon);
    if (kind == "v_prediction") return Prediction(Kind::Velocity);
    if (kind == "sample") return Prediction(Kind::Sample);
    throw Error(ErrorKind::Parameter,
                "a prediction is epsilon, v_prediction or sample, not '" + kind + "'");
}

float Prediction::input_scale(float sigma) const {
    return 1.0f / std::sqrt(sigma * sigma + 1.0f);
}

void Prediction::denoise(std::span<const float> x, std::span<const float> output, float sigma,
                         std::span<float> denoised) const {
    // denoised = from_x * x + from_output * output
    const float variance = sigma * sigma + 1.0f;
    float from_x = 0.0f, from_output = 1.0f;
    if (kind_ == Kind::Epsilon) {
        from_x = 1.0f;
        from_output = -sigma;
    } else if (kind_ == Kind::Velocity) {
        from_x = 1.0f / variance;
        from_output = -sigma / std::sqrt(variance);
    }
    for (size_t i = 0; i < x.size(); ++i) denoised[i] = from_x * x[i] + from_output * output[i];
}

}  // namespace sde::sampling
