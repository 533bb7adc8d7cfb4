// What a denoiser's output means.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "sampling/noise_levels.h"

namespace sde::sampling {

struct PredictionOptions {
    // Standard deviation of the clean latents that the network's scalings assume; absent = 0.5 for
    // edm, 1 for the others.
    std::optional<float> sigma_data;
    // Levels of a latent consistency model: its estimate is x itself at timestep 0 (Song et al.
    // 2023, arXiv 2303.01469, c_skip and c_out; Luo et al. 2023, arXiv 2310.04378).
    std::shared_ptr<const NoiseLevels> boundary;
};

class Prediction {
  public:
    // `kind`, with s = sigma and d = sigma_data:
    //   "epsilon"       the noise: x0 = x - s out
    //   "v_prediction"  the velocity (Salimans and Ho 2022, arXiv 2202.00512):
    //                   x0 = d^2 / (s^2 + d^2) x - s d / sqrt(s^2 + d^2) out
    //   "sample"        x0 itself
    //   "edm"           Karras et al. 2022 (arXiv 2206.00364), table 1:
    //                   x0 = d^2 / (s^2 + d^2) x + s d / sqrt(s^2 + d^2) out
    //   "edm_v_prediction"  the velocity over a range of sigmas (CosXL), as v_prediction
    //   "flow"          noise - x0, of x = (1 - s) x0 + s noise: x0 = x - s out
    // The network sees x / sqrt(s^2 + d^2), with flow x. Throws Parameter for another kind, a
    // sigma_data that is not above 0, and a boundary with edm or flow.
    static Prediction parse(const std::string& kind, PredictionOptions options = {});

    // Factor from x to the network's input at this noise level.
    float input_scale(float sigma) const;
    // Factor of the clean latents in x = latents_scale(sigma) * x0 + sigma * noise.
    float latents_scale(float sigma) const;
    // The estimate of the clean latents from x and the network's output; `denoised` may be
    // `output`.
    void denoise(std::span<const float> x, std::span<const float> output, float sigma,
                 std::span<float> denoised) const;

  private:
    enum class Kind { Epsilon, Velocity, Sample, Edm, Flow };
    Prediction(Kind kind, float sigma_data, std::shared_ptr<const NoiseLevels> boundary)
        : kind_(kind), sigma_data_(sigma_data), boundary_(std::move(boundary)) {}

    Kind kind_;
    float sigma_data_;
    std::shared_ptr<const NoiseLevels> boundary_;
};

}  // namespace sde::sampling
