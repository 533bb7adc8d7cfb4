// Ancestral steps: down further than the next level, and back up to it with fresh noise.
#pragma once

#include "sampling/sampler.h"

namespace sde::sampling {

// To level `down`, then x = kept * x + up * n.
struct AncestralStep {
    float down, up, kept = 1.0f;
};

// For x = x0 + sigma n: up^2 + down^2 = next^2. eta = 1 is DDPM's noise (k-diffusion's convention).
AncestralStep ancestral_step(float sigma, float next, float eta);

// For rectified flow, in ComfyUI's form: eta goes that part of the way from `next` to next^2 /
// sigma, and x is brought back to alpha(next) x0 before noise fills up its level.
AncestralStep ancestral_flow_step(float sigma, float next, float eta);

class AncestralSampler : public Sampler {
  public:
    using Sampler::Sampler;

  protected:
    AncestralStep plan(float sigma, float next, float default_eta) const;
    // The way back up, from x_ at level plan.down.
    void renoise(const AncestralStep& plan, float sigma, float next);
};

}  // namespace sde::sampling
