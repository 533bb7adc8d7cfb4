// DPM-Solver++ for the diffusion SDE (Lu et al. 2022, arXiv 2211.01095, section 5 and appendix E)
// as k-diffusion has it: eta scales the noise, h is a step in -log sigma, and the last step goes to
// the estimate itself. Fresh noise is drawn for each step from each picture's own generator.
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

// (exp(-h) - 1) / h + 1 and its successor: how much of the first and second derivative of the
// estimate a step of length h takes in.
float phi2(float h) {
    return std::expm1(-h) / h + 1.0f;
}
float phi3(float h) {
    return phi2(h) / h - 0.5f;
}

// Two evaluations a step, the second half way; an ancestral step to each.
class DpmppSde : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser& denoiser, float sigma, float next) override {
        if (next == 0.0f) {
            x_ = denoised_;
            return;
        }
        const float mid = std::sqrt(sigma * next);
        Values half = x_, estimate(x_.size());
        step_to(mid, sigma, denoised_, half);
        evaluate(denoiser, half, mid, estimate);
        step_to(next, sigma, estimate, x_);
    }

  private:
    void step_to(float level, float sigma, const Values& estimate, Values& x) {
        const auto [down, up] = ancestral_step(sigma, level, eta(1.0f));
        const float ratio = down / sigma;
        for (size_t i = 0; i < x.size(); ++i) x[i] = ratio * x[i] + (1.0f - ratio) * estimate[i];
        if (up > 0.0f) add_noise(up, x);
    }
};

// Multistep: the estimate's derivatives in -log sigma come from earlier steps. `correction` adds
// what they change.
class MultistepSde : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        if (next == 0.0f) {
            x_ = denoised_;
        } else {
            const float noise = eta(1.0f), h = std::log(sigma / next);
            const float kept = next / sigma * std::exp(-noise * h);
            const float weight = -std::expm1(-(1.0f + noise) * h);
            for (size_t i = 0; i < x_.size(); ++i) x_[i] = kept * x_[i] + weight * denoised_[i];
            if (!last_.empty()) correct(h, (1.0f + noise) * h);
            if (noise > 0.0f) add_noise(next * std::sqrt(-std::expm1(-2.0f * noise * h)));
        }
        before_.swap(last_);
        last_ = denoised_;
    }
    std::vector<Values*> history() override { return {&last_, &before_}; }

    // `effective` = (1 + eta) h. Called from the second step on.
    virtual void correct(float h, float effective) = 0;
    float past_step(int back) const {
        return std::log(sigmas_[index_ - back] / sigmas_[index_ - back + 1]);
    }

    Values last_, before_;  // estimates of the last steps
};

// Second order. Midpoint takes the derivative's weight at the middle of the step, Heun exactly.
template <bool kHeun>
class Dpmpp2mSde : public MultistepSde {
  public:
    using MultistepSde::MultistepSde;

  protected:
    void correct(float h, float effective) override {
        const float weight = kHeun ? phi2(effective) : -std::expm1(-effective) / 2.0f;
        const float scale = weight * h / past_step(1);
        for (size_t i = 0; i < x_.size(); ++i) x_[i] += scale * (denoised_[i] - last_[i]);
    }
};

// Third order from the third step on.
class Dpmpp3mSde : public MultistepSde {
  public:
    using MultistepSde::MultistepSde;

  protected:
    void correct(float h, float effective) override {
        const float first = phi2(effective), second = phi3(effective), r0 = past_step(1) / h;
        if (before_.empty()) {
            for (size_t i = 0; i < x_.size(); ++i) x_[i] += first / r0 * (denoised_[i] - last_[i]);
            return;
        }
        const float r1 = past_step(2) / h;
        for (size_t i = 0; i < x_.size(); ++i) {
            // Divided differences of the estimate over the last three steps.
            const float near = (denoised_[i] - last_[i]) / r0, far = (last_[i] - before_[i]) / r1;
            const float bend = (near - far) / (r0 + r1);
            x_[i] += first * (near + bend * r0) - second * bend;
        }
    }
};

}  // namespace

std::vector<NamedSampler> dpm_solver_sde_kin() {
    return {named<DpmppSde>("dpm++sde"), named<Dpmpp2mSde<false>>("dpm++2m_sde"),
            named<Dpmpp2mSde<true>>("dpm++2m_sde_heun"), named<Dpmpp3mSde>("dpm++3m_sde")};
}

}  // namespace sde::sampling
