// Samplers: from noise to latents, one step at a time, on host float32 arrays.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sampling/noise_levels.h"
#include "sampling/random.h"

namespace sde::sampling {

// Fills `denoised` with the estimate of the clean latents for x at noise level sigma, and
// `unguided`, where it is not empty, with the estimate without guidance (that of the negative
// prompt).
using Denoiser = std::function<void(std::span<const float> x, float sigma,
                                    std::span<float> denoised, std::span<float> unguided)>;

struct SamplerOptions {
    std::optional<float> eta;  // noise of ancestral samplers; absent = the sampler's own default
    float s_noise = 1.0f;      // scale of the noise that is added
    // The model's own levels, for samplers that step over timesteps; absent = Stable Diffusion's.
    std::shared_ptr<const NoiseLevels> levels = nullptr;
};

// A run in progress. x = x0 + sigma * noise throughout ("k-space"); see docs/sampling.md.
class Sampler {
  public:
    using Values = std::vector<float>;

    Sampler(Values x, std::vector<float> sigmas, NormalSource noise, SamplerOptions options);
    virtual ~Sampler() = default;

    // One step. If the denoiser throws, the state is as before; NaN or infinity throws Numeric and
    // names the step.
    void step(const Denoiser& denoiser);

    bool done() const noexcept { return index_ + 1 >= static_cast<int>(sigmas_.size()); }
    int index() const noexcept { return index_; }  // steps done
    int steps() const noexcept { return static_cast<int>(sigmas_.size()) - 1; }
    float sigma() const noexcept { return sigmas_[index_]; }
    std::span<const float> x() const noexcept { return x_; }
    std::span<const float> denoised() const noexcept { return denoised_; }

    // Everything that the rest of the run depends on; a sampler made with the same arguments
    // continues bit for bit.
    std::string save() const;
    void restore(const std::string& state);

  protected:
    // Moves x_ from noise level `sigma` to `next`. denoised_ holds the estimate at x_, sigma.
    virtual void advance(const Denoiser& denoiser, float sigma, float next) = 0;
    // Arrays of earlier steps that advance() reads.
    virtual std::vector<Values*> history() { return {}; }
    // True for samplers that read unguided_ (CFG++).
    virtual bool reads_unguided() const { return false; }

    void evaluate(const Denoiser& denoiser, const Values& x, float sigma, Values& denoised,
                  std::span<float> unguided = {}) const;
    void add_noise(float scale) { add_noise(scale, x_); }
    void add_noise(float scale, Values& to);  // to += scale * s_noise * n
    Values slope() const;                     // dx / dsigma = (x_ - denoised_) / sigma
    float eta(float otherwise) const { return options_.eta.value_or(otherwise); }
    const NoiseLevels& levels() const;

    Values x_, denoised_;
    Values unguided_;  // beside denoised_; empty unless reads_unguided()
    std::vector<float> sigmas_;
    int index_ = 0;

  private:
    NormalSource noise_;
    SamplerOptions options_;
};

// Throws Parameter for an unknown name, or when sigmas are not falling to 0.
std::unique_ptr<Sampler> make_sampler(const std::string& name, std::vector<float> x,
                                      std::vector<float> sigmas, NormalSource noise,
                                      SamplerOptions options);

std::vector<std::string> sampler_names();

}  // namespace sde::sampling
