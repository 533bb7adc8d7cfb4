// Samplers: from noise to latents, one step at a time, on host float32 arrays.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sampling/brownian.h"
#include "sampling/noise_levels.h"
#include "sampling/random.h"

namespace sde::sampling {

// Fills `denoised` with the estimate of the clean latents for x at noise level sigma, and
// `unguided`, where it is not empty, with the estimate without guidance (that of the negative
// prompt).
using Denoiser = std::function<void(std::span<const float> x, float sigma,
                                    std::span<float> denoised, std::span<float> unguided)>;

// Noise that is added before a step, to be removed again (Karras et al. 2022, arXiv 2206.00364,
// algorithm 2): levels from `min` to `max` rise by the factor 1 + amount / steps, at most sqrt(2).
struct Churn {
    float amount = 0.0f;  // 0 = none; for euler, heun, heunpp2 and dpm2
    float min = 0.0f, max = std::numeric_limits<float>::infinity();
};

struct SamplerOptions {
    std::optional<float> eta;  // noise of ancestral samplers; absent = the sampler's own default
    float s_noise = 1.0f;      // scale of the noise that is added
    // The model's own levels, for samplers that step over timesteps; absent = Stable Diffusion's.
    std::shared_ptr<const NoiseLevels> levels = nullptr;
    // Rectified flow: x = (1 - sigma) x0 + sigma n, sigma in 0..1, instead of x = x0 + sigma n.
    bool flow = false;
    // Noise of a step from a Brownian path per picture; absent = as the sampler's users expect.
    std::optional<bool> brownian = std::nullopt;
    std::optional<int> order = std::nullopt;  // of multistep samplers; absent = their own default
    Churn churn = {};
};

// True for samplers that need the estimate without guidance too (CFG++).
bool reads_unguided(const std::string& sampler);

// A run in progress; see docs/sampling.md.
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
    // Replaces x between two steps; throws Parameter for another size, Numeric for NaN or infinity.
    void set_x(Values x);

    // Everything that the rest of the run depends on; a sampler made with the same arguments
    // continues bit for bit.
    std::string save() const;
    void restore(const std::string& state);

  protected:
    // Moves x_ from noise level `sigma` to `next`. denoised_ holds the estimate at x_, sigma.
    virtual void advance(const Denoiser& denoiser, float sigma, float next) = 0;
    // Arrays of earlier steps that advance() reads.
    virtual std::vector<Values*> history() { return {}; }

    // What a sampler is like; the same throughout a run.
    virtual bool reads_unguided() const { return false; }  // reads unguided_ (CFG++)
    virtual bool reads_log_snr() const { return false; }   // needs log_snr(sigma) to be finite
    virtual bool brownian_by_default() const { return false; }
    virtual bool churns() const { return false; }
    virtual int max_order() const { return 0; }  // 0 = it has no order to choose
    // Why there is none for rectified flow, and what to use; empty where there is one.
    virtual std::string flow_refusal() const { return {}; }

    void evaluate(const Denoiser& denoiser, const Values& x, float sigma, Values& denoised,
                  std::span<float> unguided = {}) const;
    // x += scale * s_noise * n, where n is the noise of the way from `sigma` to `next`.
    void add_noise(float scale, float sigma, float next) { add_noise(scale, sigma, next, x_); }
    void add_noise(float scale, float sigma, float next, Values& x);
    Values slope() const;  // dx / dsigma = (x_ - denoised_) / sigma
    float eta(float otherwise) const { return options_.eta.value_or(otherwise); }
    int order(int otherwise) const { return options_.order.value_or(otherwise); }
    const NoiseLevels& levels() const;

    // x = alpha x0 + sigma n, and lambda = log(alpha / sigma), half of the log signal-to-noise
    // ratio.
    bool flow() const { return options_.flow; }
    float alpha(float sigma) const { return options_.flow ? 1.0f - sigma : 1.0f; }
    double log_snr(double sigma) const;

    Values x_, denoised_;
    Values unguided_;  // beside denoised_; empty unless reads_unguided()
    std::vector<float> sigmas_;
    int index_ = 0;

  private:
    friend bool sampling::reads_unguided(const std::string&);
    friend std::unique_ptr<Sampler> make_sampler(const std::string&, std::vector<float>,
                                                 std::vector<float>, NormalSource, SamplerOptions);
    void prepare(const std::string& name);
    void check_options(const std::string& name) const;
    float churn();  // adds it to x_; returns the level that x_ is at then

    NormalSource noise_;
    std::optional<BrownianNoise> brownian_;  // a function of the seeds: there is no state to save
    SamplerOptions options_;
};

// Throws Parameter for an unknown name, sigmas that do not fall, and options that the sampler
// lacks.
std::unique_ptr<Sampler> make_sampler(const std::string& name, std::vector<float> x,
                                      std::vector<float> sigmas, NormalSource noise,
                                      SamplerOptions options);

std::vector<std::string> sampler_names();

}  // namespace sde::sampling
