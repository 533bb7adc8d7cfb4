// Euler's method and its kin on dx / dsigma = (x - denoised) / sigma (Karras et al. 2022, arXiv
// 2206.00364).
#include <algorithm>
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {

AncestralStep ancestral_step(float sigma, float next, float eta) {
    if (eta == 0.0f) return {next, 0.0f};
    const float full = std::sqrt(next * next * (sigma * sigma - next * next) / (sigma * sigma));
    const float up = std::min(next, eta * full);
    return {std::sqrt(next * next - up * up), up};
}

namespace {

class Euler : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        for (size_t i = 0; i < x_.size(); ++i)
            x_[i] += (x_[i] - denoised_[i]) / sigma * (next - sigma);
    }
};

class EulerAncestral : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        const auto [down, up] = ancestral_step(sigma, next, eta(1.0f));
        for (size_t i = 0; i < x_.size(); ++i)
            x_[i] += (x_[i] - denoised_[i]) / sigma * (down - sigma);
        if (up > 0.0f) add_noise(up);
    }
};

// Euler's step, then the mean of the slopes at both ends.
class Heun : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser& denoiser, float sigma, float next) override {
        Values slope(x_.size()), ahead(x_.size());
        for (size_t i = 0; i < x_.size(); ++i) {
            slope[i] = (x_[i] - denoised_[i]) / sigma;
            ahead[i] = x_[i] + slope[i] * (next - sigma);
        }
        if (next > 0.0f) {
            Values denoised(x_.size());
            evaluate(denoiser, ahead, next, denoised);
            for (size_t i = 0; i < x_.size(); ++i) {
                const float mean = (slope[i] + (ahead[i] - denoised[i]) / next) / 2;
                ahead[i] = x_[i] + mean * (next - sigma);
            }
        }
        x_.swap(ahead);
    }
};

// Latent consistency models (Luo et al. 2023, arXiv 2310.04378): the estimate itself, noised to the
// next level.
class Lcm : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float, float next) override {
        x_ = denoised_;
        if (next > 0.0f) add_noise(next);
    }
};

}  // namespace

std::vector<NamedSampler> euler_kin() {
    return {named<Euler>("euler"), named<EulerAncestral>("euler_a"), named<Heun>("heun"),
            named<Lcm>("lcm")};
}

}  // namespace sde::sampling
