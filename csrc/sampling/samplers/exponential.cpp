// Refined exponential solver (Zhang et al. 2023, arXiv 2308.02157): second order on the estimate,
// in steps h of -log sigma, also for rectified flow, where only ratios of levels matter. eta > 0
// makes the steps ancestral.
#include <cmath>

#include "sampling/samplers/ancestral.h"
#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

// phi_1(-h) and phi_2(-h): h phi_1 weighs the estimate, h phi_2 its change along the step.
double phi1(double h) {
    return -std::expm1(-h) / h;
}
double phi2(double h) {
    return (1.0 - phi1(h)) / h;
}

// Where the second estimate is at the part c of the step.
struct Weights {
    double here, other;
};
Weights weights(double h, double c) {
    const double other = phi2(h) / c;
    return {h * (phi1(h) - other), h * other};
}

// The second estimate is that of the last step.
template <bool kAncestral>
class ResMultistep : public AncestralSampler {
  public:
    using AncestralSampler::AncestralSampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        const AncestralStep step = plan_to(sigma, next);
        const float down = step.down;
        const double ratio = down / sigma;
        if (last_.empty() || down == 0.0f) {
            for (size_t i = 0; i < x_.size(); ++i)
                x_[i] = static_cast<float>(ratio * x_[i] + (1.0 - ratio) * denoised_[i]);
        } else {
            const double h = std::log(double{sigma} / down);
            // ComfyUI measures the last step down to where it went, before noise came on top.
            const float before = sigmas_[index_ - 1];
            const double h_last = std::log(double{before} / plan_to(before, sigma).down);
            const auto [here, past] = weights(h, -h_last / h);
            for (size_t i = 0; i < x_.size(); ++i)
                x_[i] = static_cast<float>(ratio * x_[i] + here * denoised_[i] + past * last_[i]);
        }
        renoise(step, sigma, next);
        last_ = denoised_;
    }
    std::vector<Values*> history() override { return {&last_}; }

  private:
    AncestralStep plan_to(float sigma, float next) const {
        return plan(sigma, next, kAncestral ? 1.0f : 0.0f);
    }

    Values last_;
};

// The second estimate is evaluated half way.
class Res2s : public AncestralSampler {
  public:
    using AncestralSampler::AncestralSampler;

  protected:
    void advance(const Denoiser& denoiser, float sigma, float next) override {
        const AncestralStep step = plan(sigma, next, 0.0f);
        const float down = step.down;
        if (down == 0.0f) {
            x_ = denoised_;
        } else {
            const float mid = std::sqrt(sigma * down);
            Values half(x_.size()), estimate(x_.size());
            for (size_t i = 0; i < x_.size(); ++i)
                half[i] = denoised_[i] + mid / sigma * (x_[i] - denoised_[i]);
            evaluate(denoiser, half, mid, estimate);
            const double ratio = down / sigma;
            const auto [here, ahead] = weights(std::log(double{sigma} / down), 0.5);
            for (size_t i = 0; i < x_.size(); ++i)
                x_[i] =
                    static_cast<float>(ratio * x_[i] + here * denoised_[i] + ahead * estimate[i]);
        }
        renoise(step, sigma, next);
    }
};

}  // namespace

std::vector<NamedSampler> exponential_kin() {
    return {named<ResMultistep<false>>("res_multistep"),
            named<ResMultistep<true>>("res_multistep_a"), named<Res2s>("res_2s")};
}

}  // namespace sde::sampling
