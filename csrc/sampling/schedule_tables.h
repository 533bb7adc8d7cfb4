// Schedules that were optimised for a model and published as tables.
#pragma once

#include <vector>

#include "sampling/noise_levels.h"

namespace sde::sampling {

// n falling sigmas, without the final 0. Both throw Parameter for models with levels other than
// Stable Diffusion's, gits for a single step and a coefficient without a table too.
std::vector<double> align_your_steps(int n, const NoiseLevels& levels, bool sdxl);
std::vector<double> gits(int n, const NoiseLevels& levels, float coefficient);

}  // namespace sde::sampling
