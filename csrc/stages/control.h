// What steers a denoiser besides its conditions: residuals that control networks add to its feature
// maps.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/shape.h"
#include "stages/runner.h"

namespace sde {

// One control of a run.
struct Control {
    // Evaluated again at each step, on the noisy latents; null where `inputs` are the residuals
    // themselves, which stay the same.
    std::shared_ptr<Runner> network;
    HostArrays inputs;                     // N entries each, one per picture
    std::vector<float> weights;            // per sampler step; at 0 it is not evaluated
    std::map<std::string, float> factors;  // of single residuals; those not named take 1
    bool positive_only = false;            // other branches go without
    bool pooled = false;  // a residual's mean over the picture stands for each of its pixels
    // The denoiser's inputs that the network is given too, where `inputs` has none of that name.
    std::vector<std::string> shared = {"timesteps", "context", "class_embedding"};

    // Throws Parameter when there is not one weight per step, or a number or a shape is wrong.
    void check(int64_t pictures, int steps) const;
};

// A control at one step.
struct ActiveControl {
    const Control* control;
    float weight;
    bool operator==(const ActiveControl&) const = default;
};

// Adds the residuals of all `controls` up and puts them into `inputs`, whose entries belong to
// `pictures` in that order; `latents` are the same without extra channels.
void add_residuals(const std::vector<ActiveControl>& controls, const HostArray& latents,
                   const std::vector<int64_t>& pictures, const networks::Options& options,
                   HostArrays& inputs, const CancelCheck& cancel);

}  // namespace sde
