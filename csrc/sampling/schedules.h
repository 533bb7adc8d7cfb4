// Which noise levels a run visits.
#pragma once

#include <string>
#include <vector>

#include "sampling/noise_levels.h"

namespace sde::sampling {

struct Schedule {
    std::vector<float> sigmas;     // falling, with a final 0: one more than there are steps
    std::vector<float> timesteps;  // what the network is told at each step
    float initial_scale = 0.0f;    // standard deviation of the first latents
};

struct ScheduleOptions {
    float rho = 7.0f;      // karras
    int steps_offset = 0;  // leading
};

// Known names: discrete, karras, exponential, sgm_uniform, simple, and diffusers' three timestep
// spacings leading, linspace and trailing. Throws Parameter for an unknown name or a number of
// steps that it is not defined for.
Schedule make_schedule(const std::string& name, int steps, const NoiseLevels& levels,
                       const ScheduleOptions& options);

std::vector<std::string> schedule_names();

}  // namespace sde::sampling
