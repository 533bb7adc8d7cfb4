// What a denoiser's output means.
#pragma once

#include <span>
#include <string>

namespace sde::sampling {

// The network sees x / sqrt(sigma^2 + 1) (variance preserving) and predicts the noise, the velocity
// (Salimans and Ho 2022, arXiv 2202.00512) or the clean latents.
class Prediction {
  public:
    // `kind`: "epsilon", "v_prediction" or "sample"; throws Parameter for another one.
    static Prediction parse(const std::string& kind);

    // Factor from x to the network's input at this noise level.
    float input_scale(float sigma) const;
    // The estimate of the clean latents from x and the network's output; `denoised` may be
    // `output`.
    void denoise(std::span<const float> x, std::span<const float> output, float sigma,
                 std::span<float> denoised) const;

  private:
    enum class Kind { Epsilon, Velocity, Sample };
    explicit Prediction(Kind kind) : kind_(kind) {}
    Kind kind_;
};

}  // namespace sde::sampling
