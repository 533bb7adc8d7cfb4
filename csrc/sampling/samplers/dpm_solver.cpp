// DPM-Solver and DPM-Solver++ (Lu et al. 2022, arXiv 2206.00927 and 2211.01095), in t = -log sigma,
// where h is a step.
#include <algorithm>
#include <cmath>

#include "sampling/samplers/ancestral.h"
#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

// DPM-Solver-2: the slope half way. The ancestral kind steps to `down` and adds noise.
template <bool kAncestral>
class Dpm2 : public AncestralSampler {
  public:
    using AncestralSampler::AncestralSampler;

  protected:
    bool churns() const override { return !kAncestral; }

    void advance(const Denoiser& denoiser, float sigma, float next) override {
        const AncestralStep step = plan(sigma, next, kAncestral ? 1.0f : 0.0f);
        const float down = step.down;
        Values ahead(x_.size());
        const float mid = down > 0.0f ? std::sqrt(sigma * down) : down;
        for (size_t i = 0; i < x_.size(); ++i)
            ahead[i] = x_[i] + (x_[i] - denoised_[i]) / sigma * (mid - sigma);
        if (down > 0.0f) {
            Values denoised(x_.size());
            evaluate(denoiser, ahead, mid, denoised);
            for (size_t i = 0; i < x_.size(); ++i)
                ahead[i] = x_[i] + (ahead[i] - denoised[i]) / mid * (down - sigma);
        }
        x_.swap(ahead);
        renoise(step, sigma, next);
    }
};

// Second order, multistep: the estimate is extrapolated from this and the last step.
class Dpmpp2m : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    struct Coefficients {
        float weight;        // of the estimate in the new latents
        float extrapolated;  // how much of its last change is added to the estimate
    };
    // `h_last` is the step before, in log sigma.
    virtual Coefficients coefficients(float h, float h_last) const {
        return {-std::expm1(-h), h / (2.0f * h_last)};
    }

    void advance(const Denoiser&, float sigma, float next) override {
        const float h = std::log(sigma / next), ratio = next / sigma;
        // The first step has no past, and the last one goes to the estimate itself.
        Coefficients c{-std::expm1(-h), 0.0f};
        if (!last_.empty() && next > 0.0f)
            c = coefficients(h, std::log(sigmas_[index_ - 1] / sigma));
        for (size_t i = 0; i < x_.size(); ++i) {
            float estimate = denoised_[i];
            if (c.extrapolated != 0.0f) estimate += c.extrapolated * (denoised_[i] - last_[i]);
            x_[i] = ratio * x_[i] + c.weight * estimate;
        }
        last_ = denoised_;
    }
    std::vector<Values*> history() override { return {&last_}; }

  private:
    Values last_;
};

// The variant of 2M that ComfyUI's and stable-diffusion.cpp's users know as "v2": it extrapolates
// by the ratio of the longer of two steps to the shorter one, and decays over their mean. It is
// from no paper, and needs even steps in log sigma to be of second order.
class Dpmpp2mV2 : public Dpmpp2m {
  public:
    using Dpmpp2m::Dpmpp2m;

  protected:
    Coefficients coefficients(float h, float h_last) const override {
        return {-std::expm1(-(h + h_last) / 2.0f),
                std::min(h, h_last) / (2.0f * std::max(h, h_last))};
    }
};

// Second order, single step, with ancestral noise.
class Dpmpp2sAncestral : public AncestralSampler {
  public:
    using AncestralSampler::AncestralSampler;

  protected:
    void advance(const Denoiser& denoiser, float sigma, float next) override {
        const AncestralStep step = plan(sigma, next, 1.0f);
        Values estimate = denoised_;
        if (step.down > 0.0f) {
            const float mid = half_way(sigma, step.down), ratio = mid / sigma;
            Values half(x_.size());
            for (size_t i = 0; i < x_.size(); ++i)
                half[i] = ratio * x_[i] + (1.0f - ratio) * denoised_[i];
            evaluate(denoiser, half, mid, estimate);
        }
        const float ratio = step.down / sigma;
        for (size_t i = 0; i < x_.size(); ++i) x_[i] = ratio * x_[i] + (1.0f - ratio) * estimate[i];
        renoise(step, sigma, next);
    }

  private:
    // In lambda. That of pure noise is infinite, and ComfyUI takes a level near it instead.
    float half_way(float sigma, float down) const {
        if (!flow()) return std::sqrt(sigma * down);
        if (sigma == 1.0f) return 0.9999f;
        const double middle = (log_snr(sigma) + log_snr(down)) / 2.0;
        return static_cast<float>(1.0 / (1.0 + std::exp(middle)));
    }
};

}  // namespace

std::vector<NamedSampler> dpm_solver_kin() {
    return {named<Dpm2<false>>("dpm2"), named<Dpm2<true>>("dpm2_a"), named<Dpmpp2m>("dpm++2m"),
            named<Dpmpp2mV2>("dpm++2mv2"), named<Dpmpp2sAncestral>("dpm++2s_a")};
}

}  // namespace sde::sampling
