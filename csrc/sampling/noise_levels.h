// The noise levels that a model was trained at: its betas as a table of sigmas, and the way between
// sigma and timestep.
#pragma once

#include <string>
#include <vector>

namespace sde::sampling {

// sigma = sqrt((1 - abar) / abar) of each training timestep: x = x0 + sigma * noise (Karras et al.
// 2022, arXiv 2206.00364).
class NoiseLevels {
  public:
    // `kind`: "scaled_linear" (squares of evenly spaced roots), "linear", or "squaredcos_cap_v2"
    // (Nichol and Dhariwal 2021). `zero_terminal_snr` shifts the table so that the last timestep is
    // pure noise (Lin et al. 2023, arXiv 2305.08891).
    NoiseLevels(const std::string& kind, double beta_start, double beta_end, int count,
                bool zero_terminal_snr);

    int count() const noexcept { return static_cast<int>(table_.size()); }
    float operator[](int timestep) const { return table_[timestep]; }
    float sigma_min() const { return table_.front(); }
    float sigma_max() const { return table_.back(); }

    // Between timesteps: linear in log sigma, both ways (k-diffusion's convention). Ends are
    // clamped.
    float sigma(float timestep) const;
    float timestep(float sigma) const;
    // Linear in sigma itself (diffusers' convention).
    float sigma_linear(float timestep) const;

  private:
    std::vector<float> table_;  // rising
};

}  // namespace sde::sampling
