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
    virtual float default_eta() const { return 1.0f; }

    void advance(const Denoiser&, float sigma, float next) override {
        const auto [down, up] = ancestral_step(sigma, next, eta(default_eta()));
        for (size_t i = 0; i < x_.size(); ++i)
            x_[i] += (x_[i] - denoised_[i]) / sigma * (down - sigma);
        if (up > 0.0f) add_noise(up);
    }
};

// Denoising diffusion implicit models (Song et al. 2020, arXiv 2010.02502, equation 12). In x = x0
// + sigma * noise its standard deviation of fresh noise is that of the ancestral step, so that the
// two are one; eta = 1 is DDPM (Ho et al. 2020, arXiv 2006.11239, with the smaller variance).
class Ddim : public EulerAncestral {
  public:
    using EulerAncestral::EulerAncestral;

  protected:
    float default_eta() const override { return 0.0f; }
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

}  // namespace

std::vector<NamedSampler> euler_kin() {
    return {named<Euler>("euler"), named<EulerAncestral>("euler_a"), named<Ddim>("ddim"),
            named<EulerAncestral>("ddpm"), named<Heun>("heun")};
}

}  // namespace sde::sampling
