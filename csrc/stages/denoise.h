// The meeting point of networks and samplers: from noise to latents.
#pragma once

#include <memory>

#include "sampling/prediction.h"
#include "sampling/sampler.h"
#include "sampling/schedules.h"
#include "stages/runner.h"

namespace sde {

// Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): uncond + scale * (cond -
// uncond). Scale 1 needs no unconditional evaluation. `rescale` blends in a result of the
// conditional estimate's standard deviation (Lin et al. 2023, arXiv 2305.08891, section 3.4).
struct Guidance {
    float scale = 1.0f;
    float rescale = 0.0f;
};

// What the denoiser is given besides latents and time, the same at every step. Every array has N
// entries.
struct Conditions {
    HostArrays positive;
    HostArrays negative;       // the same names as positive; empty without guidance
    HostArray extra_channels;  // [N, E, h, w] behind the latents' channels (inpainting, editing),
                               // or empty
};

// One generation's denoising, steppable.
class DenoiseRun {
  public:
    // `latents` is the shape [N, C, h, w]; the sampler's x holds as many values. `timesteps` belong
    // to the first timesteps.size() sigmas of the sampler's schedule; other sigmas are interpolated
    // in `levels`.
    DenoiseRun(std::shared_ptr<Runner> denoiser, Conditions conditions,
               sampling::Prediction prediction, Guidance guidance, sampling::NoiseLevels levels,
               const sampling::Schedule& schedule, Shape latents,
               std::unique_ptr<sampling::Sampler> sampler);

    void step(const CancelCheck& cancel);

    const sampling::Sampler& sampler() const noexcept { return *sampler_; }
    const Shape& latents() const noexcept { return latents_; }
    int64_t evaluations() const noexcept { return evaluations_; }  // a guided batch counts as one
    std::string save() const { return sampler_->save(); }
    void restore(const std::string& state) { sampler_->restore(state); }

  private:
    void denoise(std::span<const float> x, float sigma, std::span<float> denoised,
                 std::span<float> unguided, const CancelCheck& cancel);
    void guide(std::span<const float> positive, std::span<const float> negative,
               std::span<float> out) const;
    float timestep(float sigma) const;

    std::shared_ptr<Runner> denoiser_;
    HostArrays
        inputs_;  // everything but latents and timesteps; with guidance both conditions stacked
    HostArray extra_channels_;
    sampling::Prediction prediction_;
    Guidance guidance_;
    sampling::NoiseLevels levels_;
    sampling::Schedule schedule_;
    Shape latents_;
    std::unique_ptr<sampling::Sampler> sampler_;
    bool guided_;
    int64_t evaluations_ = 0;
};

}  // namespace sde
