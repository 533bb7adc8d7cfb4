// The published sigmas of GITS.
#pragma once

#include <cstdint>
#include <vector>

namespace sde::sampling {

constexpr int kGitsCoefficients = 15;  // 0.80, 0.85, ..., 1.50
constexpr int kGitsMostSteps = 20;

// steps + 1 falling sigmas, for 2 to kGitsMostSteps steps.
std::vector<double> gits_row(int coefficient, int steps);

}  // namespace sde::sampling
