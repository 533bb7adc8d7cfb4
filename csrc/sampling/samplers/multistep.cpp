// Linear multistep methods on the slope dx / dsigma, from this and earlier steps.
#include <array>
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

constexpr int kMaxOrder = 4;
using Weights = std::array<double, kMaxOrder>;  // of the slopes, newest first

// x += sum of weights * slopes. Rising order at the start.
class Multistep : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        Values newest = slope();
        int order = 1;
        while (order < this->order(default_order()) && !slopes_[order - 1].empty()) ++order;
        if (next == 0.0f && ends_at_estimate()) {
            x_ = denoised_;
        } else {
            const Weights w = weights(order, sigma, next);
            for (size_t i = 0; i < x_.size(); ++i) {
                double change = w[0] * newest[i];
                for (int k = 1; k < order; ++k) change += w[k] * slopes_[k - 1][i];
                x_[i] += static_cast<float>(change);
            }
        }
        slopes_[2].swap(slopes_[1]);
        slopes_[1].swap(slopes_[0]);
        slopes_[0].swap(newest);
    }
    std::vector<Values*> history() override { return {&slopes_[0], &slopes_[1], &slopes_[2]}; }

    virtual Weights weights(int order, double sigma, double next) const = 0;
    int max_order() const override { return kMaxOrder; }
    virtual int default_order() const { return kMaxOrder; }
    virtual bool ends_at_estimate() const { return true; }
    double past_sigma(int back) const { return sigmas_[index_ - back]; }

  private:
    Values slopes_[kMaxOrder - 1];  // of the last steps, newest first
};

// Pseudo linear multistep with constant Adams-Bashforth coefficients (Zhang and Chen 2022, arXiv
// 2204.13902; Liu et al. 2022, arXiv 2202.09778).
class Ipndm : public Multistep {
  public:
    using Multistep::Multistep;

  protected:
    Weights weights(int order, double sigma, double next) const override {
        static constexpr Weights kCoefficients[kMaxOrder] = {
            {1.0, 0.0, 0.0, 0.0},
            {3.0 / 2, -1.0 / 2, 0.0, 0.0},
            {23.0 / 12, -16.0 / 12, 5.0 / 12, 0.0},
            {55.0 / 24, -59.0 / 24, 37.0 / 24, -9.0 / 24}};
        Weights w = kCoefficients[order - 1];
        for (double& weight : w) weight *= next - sigma;
        return w;
    }
};

// The same for steps of varying length, with the coefficients that diff-sampler (Zhou et al. 2024,
// arXiv 2312.00094) and ComfyUI use. Their third and fourth differences are those of
// Adams-Bashforth for even steps and near them for others; pictures made elsewhere depend on it.
class IpndmV : public Multistep {
  public:
    using Multistep::Multistep;

  protected:
    Weights weights(int order, double sigma, double next) const override {
        const double h = next - sigma;
        Weights w{1.0, 0.0, 0.0, 0.0};
        if (order >= 2) {
            const double h1 = sigma - past_sigma(1);
            w[0] += h / h1 / 2;
            w[1] -= h / h1 / 2;
            if (order >= 3) {
                const double h2 = past_sigma(1) - past_sigma(2), q = h1 / h2;
                const double third = (1 - h * h / (3 * h1 * (h1 + h2))) / 2;
                w[0] += third;
                w[1] -= (1 + q) * third;
                w[2] += q * third;
                if (order == 4) add_fourth(h, h1, h2, w);
            }
        }
        for (double& weight : w) weight *= h;
        return w;
    }

  private:
    void add_fourth(double h, double h1, double h2, Weights& w) const {
        const double h3 = past_sigma(2) - past_sigma(3), q = h1 / h2;
        const double span = h1 * (h1 + h2) / (h2 * (h2 + h3));
        const double two = h + h1, three = two + h2;
        const double inner = (1 - h / (3 * two)) / 2 + (1 - h / (2 * two)) * h / (6 * three);
        const double fourth = inner * h * two * three / (h1 * (h1 + h2) * (h1 + h2 + h3));
        w[0] += fourth;
        w[1] -= (1 + q + span) * fourth;
        w[2] += (q + span * (1 + h2 / h3)) * fourth;
        w[3] -= span * q * fourth;
    }
};

// Adams-Bashforth for steps of varying length, exactly: the slope's polynomial in sigma through the
// last steps is integrated (k-diffusion's LMS).
class Lms : public Multistep {
  public:
    using Multistep::Multistep;

  protected:
    Weights weights(int order, double sigma, double next) const override {
        // Gauss-Legendre with two points is exact up to the third degree.
        const double middle = (sigma + next) / 2, half = (next - sigma) / 2;
        Weights w{};
        for (const double at : {middle - half / std::sqrt(3.0), middle + half / std::sqrt(3.0)})
            for (int j = 0; j < order; ++j) {
                double basis = half;
                for (int k = 0; k < order; ++k)
                    if (k != j) basis *= (at - past_sigma(k)) / (past_sigma(j) - past_sigma(k));
                w[j] += basis;
            }
        return w;
    }
    bool ends_at_estimate() const override { return false; }
};

// Diffusion exponential integrator sampler (Zhang and Chen 2022, arXiv 2204.13902): the slope is a
// polynomial in log sigma through the last steps, as in diffusers.
class Deis : public Multistep {
  public:
    using Multistep::Multistep;

  protected:
    int max_order() const override { return 3; }
    int default_order() const override { return 2; }
    Weights weights(int order, double sigma, double next) const override {
        // Integrals of u^0, u^1 and u^2 over s from sigma to next, u = log(s / sigma).
        const double end = std::log(next / sigma);
        const double plain = next - sigma, rise = next * (end - 1) + sigma;
        const double bend = next * (end * (end - 2) + 2) - 2 * sigma;
        if (order == 1) return {plain, 0.0, 0.0, 0.0};
        // Lagrange's polynomials through u = 0, a and b.
        const double a = std::log(past_sigma(1) / sigma);
        if (order == 2) return {plain - rise / a, rise / a, 0.0, 0.0};
        const double b = std::log(past_sigma(2) / sigma);
        return {plain + (bend - (a + b) * rise) / (a * b), (bend - b * rise) / (a * (a - b)),
                (bend - a * rise) / (b * (b - a)), 0.0};
    }
};

// Gradient estimation (Permenter and Yuan 2024, arXiv 2306.04848) with gamma = 2: the slope plus
// its change since the last step.
class GradientEstimation : public Multistep {
  public:
    using Multistep::Multistep;

  protected:
    int max_order() const override { return 0; }
    int default_order() const override { return 2; }
    Weights weights(int order, double sigma, double next) const override {
        const double h = next - sigma;
        return order == 1 ? Weights{h, 0.0, 0.0, 0.0} : Weights{2 * h, -h, 0.0, 0.0};
    }
};

}  // namespace

std::vector<NamedSampler> multistep_kin() {
    return {named<Ipndm>("ipndm"), named<IpndmV>("ipndm_v"), named<Lms>("lms"), named<Deis>("deis"),
            named<GradientEstimation>("euler_ge")};
}

}  // namespace sde::sampling
