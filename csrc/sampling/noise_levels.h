// The noise levels that a model was trained at, and the way between sigma and timestep.
#pragma once

#include <string>
#include <vector>

namespace sde::sampling {

// A rising table of sigmas, and what the denoiser is told at each sigma (its timestep).
//
// Betas: x = x0 + sigma * noise, sigma = sqrt((1 - abar) / abar) of each training timestep (Karras
// et al. 2022, arXiv 2206.00364); the timestep is the place in the table.
// Flow: x = (1 - sigma) x0 + sigma * noise (Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024,
// arXiv 2403.03206); sigma is a time of 0 to 1, shifted; the timestep is sigma * multiplier.
// Edm: x = x0 + sigma * noise over a range (Karras et al. 2022); the timestep is ln(sigma) / 4.
class NoiseLevels {
  public:
    enum class Kind { Betas, Flow, Edm };

    // Betas. `kind`: "scaled_linear" (squares of evenly spaced roots), "linear", or
    // "squaredcos_cap_v2" (Nichol and Dhariwal 2021). `zero_terminal_snr` shifts the table so that
    // the last timestep is pure noise (Lin et al. 2023, arXiv 2305.08891). With `nearest`,
    // timestep() gives the whole timestep whose log sigma is nearest, as ComfyUI tells it to the
    // denoiser.
    NoiseLevels(const std::string& kind, double beta_start, double beta_end, int count,
                bool zero_terminal_snr, bool nearest = false);
    // Flow: the times i / count, i = 1 to count, shifted: sigma = a t / (1 + (a - 1) t). The
    // exponential form with mu is a = e^mu.
    static NoiseLevels flow(double shift, int count = 1000, double multiplier = 1000.0);
    // Edm: count sigmas evenly spaced in log sigma.
    static NoiseLevels edm(double sigma_min, double sigma_max, int count = 1000);

    Kind kind() const noexcept { return kind_; }
    int count() const noexcept { return static_cast<int>(table_.size()); }
    float operator[](int entry) const { return table_[entry]; }
    float sigma_min() const { return table_.front(); }
    float sigma_max() const { return table_.back(); }
    double multiplier() const noexcept { return multiplier_; }  // Flow
    double shifted(double time) const;                          // Flow: sigma of a time of 0 to 1

    // Betas, between timesteps: linear in log sigma, both ways (k-diffusion's convention); ends are
    // clamped. Otherwise each is the other's inverse.
    float sigma(float timestep) const;
    float timestep(float sigma) const;
    // Betas: linear in sigma itself (diffusers' convention). Otherwise as sigma().
    float sigma_linear(float timestep) const;
    // What the denoiser is told at an entry of the table.
    float timestep_of(int entry) const;

  private:
    explicit NoiseLevels(Kind kind) : kind_(kind) {}

    Kind kind_ = Kind::Betas;
    std::vector<float> table_;  // rising
    bool nearest_ = false;      // Betas
    double shift_ = 1.0, multiplier_ = 1.0;
};

}  // namespace sde::sampling
