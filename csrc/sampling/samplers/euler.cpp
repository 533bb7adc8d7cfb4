// Euler's method and its kin on dx / dsigma = (x - denoised) / sigma (Karras et al. 2022, arXiv
// 2206.00364), which holds for rectified flow too.
#include <algorithm>
#include <cmath>

#include "sampling/samplers/ancestral.h"
#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

class Euler : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        for (size_t i = 0; i < x_.size(); ++i)
            x_[i] += (x_[i] - denoised_[i]) / sigma * (next - sigma);
    }
    bool churns() const override { return true; }
};

class EulerAncestral : public AncestralSampler {
  public:
    using AncestralSampler::AncestralSampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        const AncestralStep step = plan(sigma, next, 1.0f);
        for (size_t i = 0; i < x_.size(); ++i)
            x_[i] += (x_[i] - denoised_[i]) / sigma * (step.down - sigma);
        renoise(step, sigma, next);
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
    bool churns() const override { return true; }
};

// Heun++ (ComfyUI; from a script for A1111, no paper): the slopes here, at the next level and at
// the one after it, the latter two weighed by their level's share of a multiple of the first.
class Heunpp2 : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser& denoiser, float sigma, float next) override {
        const int after = std::min(steps() - 1 - index_, 2);  // levels that remain before the last
        Values mean = x_, ahead = x_, denoised = denoised_;
        for (size_t i = 0; i < x_.size(); ++i) mean[i] = (x_[i] - denoised_[i]) / sigma;
        const Values here = mean;
        Values slope = here;
        float level = sigma;
        for (int k = 1; k <= after; ++k) {
            const float to = sigmas_[index_ + k];
            for (size_t i = 0; i < x_.size(); ++i) ahead[i] += slope[i] * (to - level);
            level = to;
            evaluate(denoiser, ahead, level, denoised);
            const float weight = level / (static_cast<float>(after + 1) * sigmas_.front());
            for (size_t i = 0; i < x_.size(); ++i) {
                slope[i] = (ahead[i] - denoised[i]) / level;
                mean[i] += weight * (slope[i] - here[i]);
            }
        }
        for (size_t i = 0; i < x_.size(); ++i) x_[i] += mean[i] * (next - sigma);
    }
    bool churns() const override { return true; }
};

}  // namespace

std::vector<NamedSampler> euler_kin() {
    return {named<Euler>("euler"), named<EulerAncestral>("euler_a"), named<Heun>("heun"),
            named<Heunpp2>("heunpp2")};
}

}  // namespace sde::sampling
