// The samplers of this folder, one file per kin.
#pragma once

#include "sampling/sampler.h"

namespace sde::sampling {

struct NamedSampler {
    const char* name;
    std::unique_ptr<Sampler> (*make)(std::vector<float> x, std::vector<float> sigmas,
                                     NormalSource noise, SamplerOptions options);
};

std::vector<NamedSampler> euler_kin();
std::vector<NamedSampler> ddim_kin();
std::vector<NamedSampler> consistency_kin();
std::vector<NamedSampler> dpm_solver_kin();
std::vector<NamedSampler> dpm_solver_sde_kin();
std::vector<NamedSampler> multistep_kin();
std::vector<NamedSampler> unipc_kin();
std::vector<NamedSampler> exponential_kin();
std::vector<NamedSampler> er_sde_kin();

// The entry of a table for one class.
template <class T>
NamedSampler named(const char* name) {
    return {name, [](std::vector<float> x, std::vector<float> sigmas, NormalSource noise,
                     SamplerOptions options) {
                return std::unique_ptr<Sampler>(std::make_unique<T>(std::move(x), std::move(sigmas),
                                                                    std::move(noise), options));
            }};
}

}  // namespace sde::sampling
