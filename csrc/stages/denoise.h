// The meeting point of networks and samplers: from noise to latents.
#pragma once

#include <functional>
#include <memory>

#include "sampling/guidance.h"
#include "sampling/sampler.h"
#include "sampling/schedules.h"
#include "stages/branches.h"
#include "stages/step_cache.h"
#include "stages/tiles.h"

namespace sde {

// The conditions from where the phase before ends up to, not including, step `until`.
struct Phase {
    int until;
    std::vector<std::shared_ptr<const Branch>> branches;  // phases that come back share them
};

// Masked sampling: after each step the kept region is the original again, at the noise level that
// the step arrived at.
struct Blend {
    HostArray original, noise;  // [N, C, h, w]
    HostArray mask;             // [N, 1, h, w], 0 keeps the original, 1 repaints
    // The mask is a strength per latent instead of an opacity: a latent of mask m is the original's
    // until floor(m * steps) steps are left, and free from there on (Levin and Fried 2023,
    // "Differential Diffusion", arXiv 2306.00950). So a mask of m everywhere is a run from the
    // noisy original with strength m.
    bool differential = false;
};

// Everything about a run that stays the same from its first step to its last.
struct DenoiseSetup {
    std::shared_ptr<Runner> denoiser;
    sampling::Prediction prediction;
    sampling::NoiseLevels levels;
    // Its timesteps belong to its first sigmas; other sigmas are interpolated in `levels`.
    sampling::Schedule schedule;
    Shape latents;  // [N, C, h, w]
    std::function<std::unique_ptr<sampling::Sampler>()> make_sampler;
    std::vector<Phase> phases;
    sampling::Guidance guidance = {};
    std::optional<Blend> blend = {};
    networks::Options options = {};  // of every evaluation ("circular")
    int64_t together = 0;            // entries of the largest batch; 0 for any number
    std::vector<Control> controls = {};
    std::optional<TiledDiffusion> tiles = {};
    std::optional<CacheSettings> cache = {};
};

// One generation's denoising, steppable.
class DenoiseRun {
  public:
    // Throws Parameter when a branch that the guidance needs is missing, when shapes do not fit, or
    // when the network cannot do what the guidance asks for.
    explicit DenoiseRun(std::shared_ptr<const DenoiseSetup> setup);

    // One sampler step; if it throws, the run is as before.
    void step(const CancelCheck& cancel);

    const sampling::Sampler& sampler() const noexcept { return *sampler_; }
    const Shape& latents() const noexcept { return setup_->latents; }
    // Branches that the network has evaluated, whether in one batch or not.
    int64_t evaluations() const noexcept { return evaluations_; }
    // Those of single pictures that took something over from an earlier one (stages/step_cache.h).
    int64_t reused() const noexcept { return cache_ ? cache_->reused() : 0; }
    // Replaces the latents between two steps; throws Parameter for another shape.
    void set_latents(const HostArray& latents);

    std::string save() const;
    void restore(const std::string& state);
    // A run of its own that continues bit for bit.
    std::unique_ptr<DenoiseRun> fork() const;

  private:
    const Phase& phase() const { return phase(sampler_->index()); }
    const Phase& phase(int step) const;
    std::vector<ActiveControl> controls(Branch::Role role, int step) const;
    std::optional<StepCache> first_cache() const;
    std::vector<BranchCall> plan(const sampling::Needs& needs, sampling::Predictions& to) const;
    void denoise(std::span<const float> x, float sigma, std::span<float> denoised,
                 std::span<float> unguided, const CancelCheck& cancel);
    void keep_original();
    float timestep(float sigma) const;
    void check_phases() const;
    void check_support();

    std::shared_ptr<const DenoiseSetup> setup_;
    std::unique_ptr<sampling::Sampler> sampler_;
    sampling::Guide guide_;
    networks::Options skipped_, perturbed_;  // graph options of the weakened branches
    HostArrays nag_;                         // the `nag` input, or nothing
    int64_t evaluations_ = 0;
    std::optional<StepCache> cache_;
};

}  // namespace sde
