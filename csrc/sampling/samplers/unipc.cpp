// UniPC, a predictor-corrector of second order (Zhao et al. 2023, arXiv 2302.04867) on the
// estimate, in steps h of -log sigma. The corrector uses the evaluation that the next step makes
// anyway.
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

// B(h) of the paper: h itself (bh1) or exp(h) - 1 (bh2).
enum class Basis { Bh1, Bh2 };

template <Basis kBasis>
class UniPc : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        if (!last_.empty()) correct(sigma);
        Values corrected = x_;
        predict(sigma, next);
        start_.swap(corrected);
        before_.swap(last_);
        last_ = denoised_;
    }
    std::vector<Values*> history() override { return {&start_, &last_, &before_}; }

  private:
    static double basis(double h) { return kBasis == Basis::Bh1 ? h : -std::expm1(-h); }
    double step(int from) const { return std::log(double{sigmas_[from]} / sigmas_[from + 1]); }

    // Redoes the last step, now that the estimate at its end is known.
    void correct(float sigma) {
        const double h = step(index_ - 1), ratio = sigma / sigmas_[index_ - 1];
        const double to_last = -std::expm1(-h), scale = basis(h);
        double past = 0.0, now = 0.5;
        if (!before_.empty()) {
            // The weights make the step exact for estimates of second degree in log sigma.
            const double first = -to_last / -h - 1, second = first / -h - 0.5;
            const double b0 = -first / scale, b1 = -2 * second / scale;
            const double r = -step(index_ - 2) / h;
            past = (b1 - b0) / (r - 1) / r;
            now = b0 - past * r;
        }
        for (size_t i = 0; i < x_.size(); ++i) {
            double change = now * (denoised_[i] - last_[i]);
            if (past != 0.0) change += past * (before_[i] - last_[i]);
            x_[i] = static_cast<float>(ratio * start_[i] + to_last * last_[i] + scale * change);
        }
    }

    void predict(float sigma, float next) {
        const double ratio = next / sigma;
        // The last step goes to the estimate; the first has no past.
        double past = 0.0;
        if (!last_.empty() && index_ + 1 < steps())
            past = 0.5 * basis(step(index_)) * step(index_) / step(index_ - 1);
        for (size_t i = 0; i < x_.size(); ++i) {
            double x = ratio * x_[i] + (1.0 - ratio) * denoised_[i];
            if (past != 0.0) x += past * (denoised_[i] - last_[i]);
            x_[i] = static_cast<float>(x);
        }
    }

    Values start_;          // corrected x that the last step started from
    Values last_, before_;  // estimates of the last steps
};

}  // namespace

std::vector<NamedSampler> unipc_kin() {
    return {named<UniPc<Basis::Bh1>>("unipc_bh1"), named<UniPc<Basis::Bh2>>("unipc_bh2")};
}

}  // namespace sde::sampling
