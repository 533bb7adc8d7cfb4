// The meeting point of networks and samplers: latents in, an estimate of the clean latents out.
#pragma once

#include <memory>

#include "sampling/prediction.h"
#include "stages/runner.h"

namespace sde {

// Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): uncond + scale * (cond - uncond). Scale 1 needs
// no unconditional evaluation. `rescale` blends in a result of the conditional estimate's standard deviation
// (Lin et al. 2023, arXiv 2305.08891, section 3.4).
struct Guidance {
    float scale = 1.0f;
    float rescale = 0.0f;
};

// What the denoiser is given besides latents and time, the same at every step. Every array has N entries.
struct Conditions {
    HostArrays positive;
    HostArrays negative;       // the same names as positive, or empty: no guidance
    HostArray extra_channels;  // [N, E, h, w] behind the latents' channels (inpainting, editing), or empty
};

class GuidedDenoiser {
  public:
    GuidedDenoiser(std::shared_ptr<Runner> denoiser, Conditions conditions, sampling::Prediction prediction,
                   Guidance guidance, Shape latents, CancelCheck cancel);

    // x [N, C, h, w] at noise level `sigma`, which the network is told as `timestep`. Fills `denoised` and, if it is not
    // empty, `unconditional`. With guidance both conditions run as one batch of 2 N.
    void operator()(std::span<const float> x, float sigma, float timestep, std::span<float> denoised,
                    std::span<float> unconditional);

    // Network evaluations so far; a batch counts as one.
    int64_t evaluations() const noexcept { return evaluations_; }

  private:
    std::shared_ptr<Runner> denoiser_;
    HostArrays inputs_;  // everything but latents and timesteps, both conditions stacked
    HostArray extra_channels_;
    sampling::Prediction prediction_;
    Guidance guidance_;
    Shape latents_;
    CancelCheck cancel_;
    bool guided_;
    int64_t evaluations_ = 0;
};

}  // namespace sde
