// Few-step samplers of distilled models: go to an estimate, and noise it to the next level.
#include <algorithm>
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

// Latent consistency models (Luo et al. 2023, arXiv 2310.04378): the estimate itself, noised to the
// next level.
class Lcm : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        for (size_t i = 0; i < x_.size(); ++i) x_[i] = alpha(next) * denoised_[i];
        if (next > 0.0f) add_noise(next, sigma, next);
    }
};

// Trajectory consistency distillation (Zheng et al. 2024, arXiv 2402.19159): along the
// trajectory to timestep s = (1 - eta) t', then noised up to t'.
class Tcd : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        const float down = trajectory_end(next);
        for (size_t i = 0; i < x_.size(); ++i)
            x_[i] += (x_[i] - denoised_[i]) / sigma * (down - sigma);
        if (next > down) add_noise(std::sqrt(next * next - down * down), sigma, next);
    }
    std::string flow_refusal() const override {
        return "it steps over the training timesteps of a noise schedule; use lcm";
    }

  private:
    float trajectory_end(float next) const {
        const float gamma = eta(0.3f);
        if (next == 0.0f || gamma == 0.0f) return next;
        // Of whole timesteps; sigma to timestep and back is good for about a thousandth of one.
        const float s = std::floor((1.0f - gamma) * levels().timestep(next) + 2e-3f);
        return std::min(next, levels().sigma(s));
    }
};

}  // namespace

std::vector<NamedSampler> consistency_kin() {
    return {named<Lcm>("lcm"), named<Tcd>("tcd")};
}

}  // namespace sde::sampling
