#include "sampling/samplers/ancestral.h"

#include <algorithm>
#include <cmath>

namespace sde::sampling {

AncestralStep ancestral_step(float sigma, float next, float eta) {
    if (eta == 0.0f) return {next, 0.0f};
    const float full = std::sqrt(next * next * (sigma * sigma - next * next) / (sigma * sigma));
    const float up = std::min(next, eta * full);
    return {std::sqrt(next * next - up * up), up};
}

AncestralStep ancestral_flow_step(float sigma, float next, float eta) {
    if (eta == 0.0f) return {next, 0.0f};
    const float down = next * std::max(0.0f, 1.0f + (next / sigma - 1.0f) * eta);
    const float kept = (1.0f - next) / (1.0f - down);
    const float variance = next * next - down * down * kept * kept;
    return {down, std::sqrt(std::max(variance, 0.0f)), kept};
}

AncestralStep AncestralSampler::plan(float sigma, float next, float default_eta) const {
    const auto step = flow() ? ancestral_flow_step : ancestral_step;
    return step(sigma, next, eta(default_eta));
}

void AncestralSampler::renoise(const AncestralStep& plan, float sigma, float next) {
    if (plan.kept != 1.0f)
        for (float& value : x_) value *= plan.kept;
    if (plan.up > 0.0f) add_noise(plan.up, sigma, next);
}

}  // namespace sde::sampling
