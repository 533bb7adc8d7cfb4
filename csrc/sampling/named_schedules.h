// The schedules that have names, one file per kin. Each gives sigmas without the final 0.
#pragma once

#include "sampling/schedules.h"

namespace sde::sampling {

struct NamedSchedule {
    const char* name;
    Schedule (*make)(int steps, const NoiseLevels& levels, const ScheduleOptions& options);
};

std::vector<NamedSchedule> schedules_over_sigmas();     // a curve between the largest and smallest
std::vector<NamedSchedule> schedules_over_timesteps();  // places in the model's table
std::vector<NamedSchedule> schedules_of_diffusers();    // its timestep spacings

// i / (n - 1), and 0 for the only step of one.
inline double along(int i, int n) {
    return n > 1 ? static_cast<double>(i) / (n - 1) : 0.0;
}

// Sigmas with the timesteps that belong to them.
Schedule with_timesteps(const std::vector<double>& sigmas, const NoiseLevels& levels);

// Where the distribution Beta(0.6, 0.6) has the share `part` below it (Lee et al. 2024, arXiv
// 2407.12173).
double beta_quantile(double part);

// Throws Parameter for models that are not over betas; `why` completes "schedule NAME ".
void check_over_betas(const char* name, const NoiseLevels& levels, const char* why);

}  // namespace sde::sampling
