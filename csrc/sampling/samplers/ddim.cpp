// Denoising diffusion implicit models (Song et al. 2020, arXiv 2010.02502, equation 12), for any x
// = alpha x0 + sigma n: the noise of x is taken out down to what the next level keeps of it, and
// fresh noise fills that up. eta = 1 is DDPM (Ho et al. 2020, arXiv 2006.11239, with the smaller
// variance). CFG++ (Chung et al. 2024, arXiv 2406.08070) goes to the guided estimate, but along the
// noise that the estimate without guidance leaves.
#include <algorithm>
#include <cmath>

#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

enum class Direction { Guided, Unguided };

template <Direction kDirection, bool kAncestral>
class Ddim : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        const float from = alpha(sigma), to = alpha(next);
        const float ratio = next * from / (sigma * to);
        const float full = next * std::sqrt(std::max(0.0f, 1.0f - ratio * ratio));
        const float fresh = std::min(next, eta(kAncestral ? 1.0f : 0.0f) * full);
        const float kept = std::sqrt(next * next - fresh * fresh) / sigma;
        const Values& left = kDirection == Direction::Guided ? denoised_ : unguided_;
        for (size_t i = 0; i < x_.size(); ++i)
            x_[i] = to * denoised_[i] + kept * (x_[i] - from * left[i]);
        if (fresh > 0.0f) add_noise(fresh, sigma, next);
    }
    bool reads_unguided() const override { return kDirection == Direction::Unguided; }
};

// CFG++ on DPM-Solver++ 2M, in ComfyUI's form: the change of the estimate is that from the last
// one without guidance.
class Dpmpp2mCfgpp : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        const float ratio = next / sigma;
        float change = 0.0f;
        if (!last_.empty() && next > 0.0f) {
            const float h = std::log(sigma / next), before = std::log(sigmas_[index_ - 1] / sigma);
            change = -std::expm1(-h) * h / (2.0f * before);
        }
        for (size_t i = 0; i < x_.size(); ++i) {
            x_[i] = denoised_[i] + ratio * (x_[i] - unguided_[i]);
            if (change != 0.0f) x_[i] += change * (denoised_[i] - last_[i]);
        }
        last_ = unguided_;
    }
    std::vector<Values*> history() override { return {&last_}; }
    bool reads_unguided() const override { return true; }
    std::string flow_refusal() const override {
        return "its step is written for x = x0 + sigma n; use euler_cfg_pp";
    }

  private:
    Values last_;
};

}  // namespace

std::vector<NamedSampler> ddim_kin() {
    return {named<Ddim<Direction::Guided, false>>("ddim"),
            named<Ddim<Direction::Guided, true>>("ddpm"),
            named<Ddim<Direction::Unguided, false>>("euler_cfg_pp"),
            named<Ddim<Direction::Unguided, true>>("euler_a_cfg_pp"),
            named<Dpmpp2mCfgpp>("dpm++2m_cfg_pp")};
}

}  // namespace sde::sampling
