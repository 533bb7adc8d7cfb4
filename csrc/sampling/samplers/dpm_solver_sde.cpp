// DPM-Solver++ for the diffusion SDE (Lu et al. 2022, arXiv 2211.01095, section 5 and appendix E)
// as k-diffusion has it: eta scales the noise, h is a step in lambda = log(alpha / sigma), and the
// last step goes to the estimate itself. Noise comes from a Brownian path per picture, so that it
// hardly depends on the number of steps.
#include <cmath>

#include "sampling/samplers/ancestral.h"
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

class SdeSampler : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    bool reads_log_snr() const override { return true; }
    bool brownian_by_default() const override { return true; }
};

// Two evaluations a step, the second half way; an ancestral step to each, in exp(-lambda).
class DpmppSde : public SdeSampler {
  public:
    using SdeSampler::SdeSampler;

  protected:
    void advance(const Denoiser& denoiser, float sigma, float next) override {
        if (next == 0.0f) {
            x_ = denoised_;
            return;
        }
        const float mid = half_way(sigma, next);
        Values half = x_, estimate(x_.size());
        step_to(mid, sigma, denoised_, half);
        evaluate(denoiser, half, mid, estimate);
        step_to(next, sigma, estimate, x_);
    }

  private:
    // Here levels are rounded as k-diffusion rounds them on their way through lambda: the Brownian
    // path's times have six decimals, so that the last bits matter.
    float half_way(float sigma, float next) const {
        const float from = to_lambda(sigma), to = to_lambda(next);
        return to_level(from + (to - from) * 0.5f);
    }
    float time_of(float sigma) const { return flow() ? sigma : to_level(to_lambda(sigma)); }
    float to_lambda(float sigma) const {
        return flow() ? std::log((1.0f - sigma) / sigma) : -std::log(sigma);
    }
    float to_level(float lambda) const {
        return flow() ? 1.0f / (1.0f + std::exp(lambda)) : std::exp(-lambda);
    }

    void step_to(float level, float sigma, const Values& estimate, Values& x) {
        const float from = alpha(sigma), to = alpha(level);
        const auto [down, up, kept] = ancestral_step(sigma / from, level / to, eta(1.0f));
        const float ratio = down / (sigma / from);
        for (size_t i = 0; i < x.size(); ++i)
            x[i] = to * (ratio * (x[i] / from) + (1.0f - ratio) * estimate[i]);
        if (up > 0.0f) add_noise(to * up, time_of(sigma), time_of(level), x);
    }
};

// Multistep: the estimate's derivatives in lambda come from earlier steps. `correct` adds what they
// change.
class MultistepSde : public SdeSampler {
  public:
    using SdeSampler::SdeSampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        if (next == 0.0f) {
            x_ = denoised_;
        } else {
            const float noise = eta(1.0f), h = step_length(index_);
            const float kept = next / sigma * std::exp(-noise * h);
            const float weight = -alpha(next) * std::expm1(-(1.0f + noise) * h);
            for (size_t i = 0; i < x_.size(); ++i) x_[i] = kept * x_[i] + weight * denoised_[i];
            if (!last_.empty()) correct(alpha(next), h, (1.0f + noise) * h);
            if (noise > 0.0f)
                add_noise(next * std::sqrt(-std::expm1(-2.0f * noise * h)), sigma, next);
        }
        before_.swap(last_);
        last_ = denoised_;
    }
    std::vector<Values*> history() override { return {&last_, &before_}; }

    // Everything is scaled by `alpha`; `effective` = (1 + eta) h. Called from the second step on.
    virtual void correct(float alpha, float h, float effective) = 0;
    // Of step number `index`, in lambda.
    float step_length(int index) const {
        return static_cast<float>(log_snr(sigmas_[index + 1]) - log_snr(sigmas_[index]));
    }

    Values last_, before_;  // estimates of the last steps
};

// Second order. Midpoint takes the derivative's weight at the middle of the step, Heun exactly.
template <bool kHeun>
class Dpmpp2mSde : public MultistepSde {
  public:
    using MultistepSde::MultistepSde;

  protected:
    void correct(float alpha, float h, float effective) override {
        const float weight = kHeun ? phi2(effective) : -std::expm1(-effective) / 2.0f;
        const float scale = alpha * weight * h / step_length(index_ - 1);
        for (size_t i = 0; i < x_.size(); ++i) x_[i] += scale * (denoised_[i] - last_[i]);
    }
};

// Third order from the third step on.
class Dpmpp3mSde : public MultistepSde {
  public:
    using MultistepSde::MultistepSde;

  protected:
    void correct(float alpha, float h, float effective) override {
        const float first = alpha * phi2(effective), second = alpha * phi3(effective);
        const float r0 = step_length(index_ - 1) / h;
        if (before_.empty()) {
            for (size_t i = 0; i < x_.size(); ++i) x_[i] += first / r0 * (denoised_[i] - last_[i]);
            return;
        }
        const float r1 = step_length(index_ - 2) / h;
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
