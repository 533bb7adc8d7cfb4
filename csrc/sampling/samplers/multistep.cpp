// Linear multistep methods.
#include "sampling/samplers/samplers.h"

namespace sde::sampling {
namespace {

// Pseudo linear multistep on the slope, order up to 4, with constant Adams-Bashforth coefficients
// (Zhang and Chen 2022, arXiv 2204.13902; Liu et al. 2022, arXiv 2202.09778).
class Ipndm : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    void advance(const Denoiser&, float sigma, float next) override {
        static constexpr float kCoefficients[4][4] = {
            {1.0f, 0.0f, 0.0f, 0.0f},
            {3.0f / 2, -1.0f / 2, 0.0f, 0.0f},
            {23.0f / 12, -16.0f / 12, 5.0f / 12, 0.0f},
            {55.0f / 24, -59.0f / 24, 37.0f / 24, -9.0f / 24}};
        Values slope(x_.size());
        for (size_t i = 0; i < x_.size(); ++i) slope[i] = (x_[i] - denoised_[i]) / sigma;
        int order = 1;
        while (order < 4 && !slopes_[order - 1].empty()) ++order;
        const float* c = kCoefficients[order - 1];
        for (size_t i = 0; i < x_.size(); ++i) {
            float mean = c[0] * slope[i];
            for (int k = 1; k < order; ++k) mean += c[k] * slopes_[k - 1][i];
            // The last step goes to the estimate itself.
            x_[i] = next > 0.0f ? x_[i] + (next - sigma) * mean : denoised_[i];
        }
        slopes_[2].swap(slopes_[1]);
        slopes_[1].swap(slopes_[0]);
        slopes_[0].swap(slope);
    }
    std::vector<Values*> history() override { return {&slopes_[0], &slopes_[1], &slopes_[2]}; }

  private:
    Values slopes_[3];  // of the last steps, newest first
};

}  // namespace

std::vector<NamedSampler> multistep_kin() {
    return {named<Ipndm>("ipndm")};
}

}  // namespace sde::sampling
