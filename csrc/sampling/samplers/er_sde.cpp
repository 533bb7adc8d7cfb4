// Extended reverse-time SDE solver of third order (Cui et al. 2023, arXiv 2309.06169), in sigma /
// alpha.
#include <algorithm>
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

// The noise scale function that the authors recommend: how the noise is spread over the levels.
double spread(double sigma) {
    return sigma * (std::exp(std::pow(sigma, 0.3)) + 10.0);
}

// Integrals of 1 / spread and of (s - sigma) / spread from `next` to `sigma`, as sums over 200
// points from below, the number that the authors' code uses.
struct Integrals {
    double plain = 0.0, weighted = 0.0;
};
Integrals integrate(double sigma, double next) {
    constexpr int kPoints = 200;
    const double width = (sigma - next) / kPoints;
    Integrals sums;
    for (int i = 0; i < kPoints; ++i) {
        const double s = next + i * width;
        sums.plain += width / spread(s);
        sums.weighted += width * (s - sigma) / spread(s);
    }
    return sums;
}

class ErSde : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        Values change;  // of the estimate over sigma, since the last step
        if (!last_.empty()) {
            change.resize(x_.size());
            const auto dropped = static_cast<float>(ratio(sigma) - ratio(sigmas_[index_ - 1]));
            for (size_t i = 0; i < x_.size(); ++i) change[i] = (denoised_[i] - last_[i]) / dropped;
        }
        if (next == 0.0f)
            x_ = denoised_;
        else
            step_to(sigma, next, change);
        last_change_.swap(change);
        last_ = denoised_;
    }
    std::vector<Values*> history() override { return {&last_, &last_change_}; }

    bool reads_log_snr() const override { return true; }

  private:
    double ratio(float sigma) const { return double{sigma} / alpha(sigma); }

    void step_to(float sigma, float next, const Values& change) {
        const double from = ratio(sigma), to = ratio(next), h = to - from;
        const double kept = spread(to) / spread(from);
        const auto [plain, weighted] = integrate(from, to);
        const double first = h + plain * spread(to);
        const double second = h * h / 2 + weighted * spread(to);
        // Between the middles of the last two steps, where their changes are.
        const double apart = last_change_.empty() ? 1.0 : (from - ratio(sigmas_[index_ - 2])) / 2;
        const double back = 1.0 / alpha(sigma), scale = alpha(next);
        for (size_t i = 0; i < x_.size(); ++i) {
            double x = kept * back * x_[i] + (1.0 - kept) * denoised_[i];
            if (!change.empty()) x += first * change[i];
            if (!last_change_.empty()) x += second * (change[i] - last_change_[i]) / apart;
            x_[i] = static_cast<float>(scale * x);
        }
        // eta = 1 is the paper's noise. Less of it changes nothing else in the step.
        const double variance = std::max(to * to - from * from * kept * kept, 0.0);
        const float noise = eta(1.0f) * static_cast<float>(scale * std::sqrt(variance));
        if (noise > 0.0f) add_noise(noise, sigma, next);
    }

    Values last_, last_change_;
};

}  // namespace

std::vector<NamedSampler> er_sde_kin() {
    return {named<ErSde>("er_sde")};
}

}  // namespace sde::sampling
