// UniPC, a predictor-corrector of up to third order (Zhao et al. 2023, arXiv 2302.04867) on the
// estimate, in steps h of lambda = log(alpha / sigma). The corrector uses the evaluation that the
// next step makes anyway.
#include <algorithm>
#include <array>
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

constexpr int kMaxOrder = 3;

// B(h) of the paper: h itself (bh1) or exp(h) - 1 (bh2).
enum class Basis { Bh1, Bh2 };

using Weights = std::array<double, kMaxOrder>;

// The w with sum_j r_j^i w_j = b_i for i = 0 .. count - 1 (Vandermonde): column by column, each
// row less r_j times the one above.
Weights solve(const Weights& r, Weights b, int count) {
    for (int j = 0; j < count - 1; ++j)
        for (int i = count - 1; i > j; --i) b[i] -= r[j] * b[i - 1];
    for (int j = count - 2; j >= 0; --j) {
        for (int i = j + 1; i < count; ++i) b[i] /= r[i] - r[i - j - 1];
        for (int i = j; i < count - 1; ++i) b[i] -= b[i + 1];
    }
    return b;
}

template <Basis kBasis>
class UniPc : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float, float) override {
        if (index_ > 0) correct();
        Values corrected = x_;
        predict();
        start_.swap(corrected);
        estimates_[2].swap(estimates_[1]);
        estimates_[1].swap(estimates_[0]);
        estimates_[0] = denoised_;
    }
    std::vector<Values*> history() override {
        return {&start_, &estimates_[0], &estimates_[1], &estimates_[2]};
    }
    int max_order() const override { return kMaxOrder; }
    bool reads_log_snr() const override { return true; }

  private:
    // Fewer at the start, where there is no past, and at the end, where it would be extrapolated.
    int order_of(int index) const { return std::min({order(2), index + 1, steps() - index}); }

    double lambda(int index) const { return log_snr(sigmas_[index]); }

    // How far back the estimates before step `index` are, in steps h, and what the weights of their
    // differences must sum up to for a step that is exact for polynomials in lambda.
    struct System {
        double h, scale;  // scale = B(h)
        Weights r{}, b{};
    };
    System system(int index, int order) const {
        System s{.h = lambda(index + 1) - lambda(index), .scale = 0.0};
        s.scale = kBasis == Basis::Bh1 ? s.h : -std::expm1(-s.h);
        for (int k = 0; k < order - 1; ++k) s.r[k] = (lambda(index - k - 1) - lambda(index)) / s.h;
        s.r[order - 1] = 1.0;
        double phi = std::expm1(-s.h) / -s.h - 1.0, factorial = 1.0;
        for (int k = 0; k < order; ++k) {
            s.b[k] = -phi * factorial / s.scale;
            factorial *= k + 2;
            phi = phi / -s.h - 1.0 / factorial;
        }
        return s;
    }

    // x at the end of step `index` from `start` and the estimate there, plus the weighed
    // differences to it of other estimates.
    struct Term {
        const Values* estimate;
        double weight;
    };
    void step(int index, const Values& start, const Values& estimate,
              const std::vector<Term>& terms) {
        const double ratio = double{sigmas_[index + 1]} / sigmas_[index];
        const double to = alpha(sigmas_[index + 1]), weight = to - ratio * alpha(sigmas_[index]);
        for (size_t i = 0; i < x_.size(); ++i) {
            double x = ratio * start[i] + weight * estimate[i];
            for (const Term& term : terms)
                x += to * term.weight * ((*term.estimate)[i] - estimate[i]);
            x_[i] = static_cast<float>(x);
        }
    }

    // Redoes the last step, now that the estimate at its end is known.
    void correct() {
        const int last = index_ - 1, order = order_of(last);
        const System s = system(last, order);
        // The paper's constant for the first order.
        const Weights w = order == 1 ? Weights{0.5} : solve(s.r, s.b, order);
        std::vector<Term> terms;
        for (int k = 0; k < order - 1; ++k)
            terms.push_back({&estimates_[k + 1], s.scale * w[k] / s.r[k]});
        terms.push_back({&denoised_, s.scale * w[order - 1]});
        step(last, start_, estimates_[0], terms);
    }

    void predict() {
        const int order = order_of(index_);
        std::vector<Term> terms;
        if (order > 1) {
            const System s = system(index_, order);
            // The paper's constant for the second order.
            const Weights w = order == 2 ? Weights{0.5} : solve(s.r, s.b, order - 1);
            for (int k = 0; k < order - 1; ++k)
                terms.push_back({&estimates_[k], s.scale * w[k] / s.r[k]});
        }
        const Values start = x_;
        step(index_, start, denoised_, terms);
    }

    Values start_;                             // corrected x that the last step started from
    std::array<Values, kMaxOrder> estimates_;  // of the last steps, newest first
};

}  // namespace

std::vector<NamedSampler> unipc_kin() {
    return {named<UniPc<Basis::Bh1>>("unipc_bh1"), named<UniPc<Basis::Bh2>>("unipc_bh2")};
}

}  // namespace sde::sampling
