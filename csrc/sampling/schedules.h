// Which noise levels a run visits.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sampling/noise_levels.h"

namespace sde::sampling {

struct Schedule {
    std::vector<float> sigmas;     // falling, with a final 0: one more than there are steps. A few
                                   // schedules have a step more or fewer than were asked for.
    std::vector<float> timesteps;  // what the network is told at each step
    float initial_scale = 0.0f;    // standard deviation of the first latents
};

struct ScheduleOptions {
    std::optional<float> rho;  // exponent of karras (7) and polyexponential (1)
    int steps_offset = 0;      // leading
};

// Known names: schedule_names(), described in docs/sampling.md. Throws Parameter for an unknown
// name or a number of steps that it is not defined for.
Schedule make_schedule(const std::string& name, int steps, const NoiseLevels& levels,
                       const ScheduleOptions& options);

std::vector<std::string> schedule_names();

}  // namespace sde::sampling
