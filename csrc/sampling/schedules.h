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

    int steps() const noexcept { return static_cast<int>(timesteps.size()); }
    // Steps first to last - 1; it ends at a sigma above 0 if last is not the last one. Throws
    // Parameter unless 0 <= first < last <= steps().
    Schedule part(int first, int last) const;

    // Explicit noise levels; the final 0 is added where it is missing. Both throw Parameter unless
    // they fall and fit the levels. At a timestep sigma is linear between table entries (diffusers'
    // convention).
    static Schedule from_sigmas(std::vector<float> sigmas, const NoiseLevels& levels);
    static Schedule from_timesteps(std::vector<float> timesteps, const NoiseLevels& levels);
};

struct ScheduleOptions {
    std::optional<float> rho;  // exponent of karras (7) and polyexponential (1)
    int steps_offset = 0;      // leading
    // Ends of karras, exponential, polyexponential, kl_optimal, laplace and beta_sigmas; absent =
    // the model's.
    std::optional<float> sigma_min, sigma_max;
    // A schedule whose first and last sigma are those ends, as diffusers has it; empty = none.
    std::string spacing;
    std::optional<float> coefficient;  // gits: 0.80 to 1.50 by 0.05 (1.20)
    // Flow: the last sigma above 0; the way from 1 is stretched to it (diffusers' shift_terminal).
    std::optional<float> terminal;
    // Betas, leading, linspace and trailing: as diffusers' multistep solvers (DPM, DEIS, UniPC)
    // have them. They space one timestep more and leave out the last, and begin with noise of unit
    // variance in their own coordinates.
    bool multistep = false;
};

// Known names: schedule_names(), described in docs/sampling.md. Throws Parameter for an unknown
// name, an option out of its range, and levels or a number of steps that it is not defined for.
Schedule make_schedule(const std::string& name, int steps, const NoiseLevels& levels,
                       const ScheduleOptions& options);

std::vector<std::string> schedule_names();

}  // namespace sde::sampling
