#include <cmath>

#include "base/error.h"
#include "sampling/named_schedules.h"

namespace sde::sampling {
namespace {

// The timestep spacings of Lin et al. 2023 (arXiv 2305.08891), table 2, rounded and interpolated as
// EulerDiscreteScheduler does.
Schedule spaced(std::vector<double> timesteps, const NoiseLevels& levels,
                bool variance_preserving) {
    Schedule schedule;
    for (double t : timesteps) {
        if (t < 0 || t > levels.count() - 1)
            throw Error(ErrorKind::Parameter,
                        "this many steps lead to timestep " + std::to_string(static_cast<int>(t)) +
                            ", outside of the model's 0 to " + std::to_string(levels.count() - 1));
        schedule.timesteps.push_back(static_cast<float>(t));
        schedule.sigmas.push_back(levels.sigma_linear(static_cast<float>(t)));
    }
    if (variance_preserving)
        schedule.initial_scale = std::sqrt(schedule.sigmas[0] * schedule.sigmas[0] + 1.0f);
    return schedule;
}

// A flow model's times from 1 to `last`, evenly spaced and shifted once.
Schedule flow_times(int n, double last, const NoiseLevels& levels) {
    std::vector<double> sigmas;
    for (int i = 0; i < n; ++i) sigmas.push_back(levels.shifted(1.0 + along(i, n) * (last - 1.0)));
    return with_timesteps(sigmas, levels);
}

Schedule leading(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    check_over_betas("leading", levels, "picks training timesteps");
    const int left_out = options.multistep ? 1 : 0, ratio = levels.count() / (n + left_out);
    std::vector<double> t;
    for (int i = n - 1; i >= 0; --i) t.push_back((i + left_out) * ratio + options.steps_offset);
    return spaced(t, levels, true);
}

// Over a flow: what FlowMatchEulerDiscreteScheduler does with a dynamic shift and no sigmas.
Schedule linspace(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    if (levels.kind() == NoiseLevels::Kind::Flow)
        return flow_times(n, 1.0 / levels.count(), levels);
    check_over_betas("linspace", levels, "picks training timesteps");
    std::vector<double> t;
    const int last = levels.count() - 1;
    for (int i = n - 1; i >= 0; --i)
        t.push_back(options.multistep ? std::nearbyint(static_cast<double>(last) * (i + 1) / n)
                                      : static_cast<float>(last * along(i, n)));
    return spaced(t, levels, options.multistep);
}

// Over a flow: what the pipelines of FLUX and Qwen-Image pass, sigmas from 1 to 1 / n.
Schedule trailing(int n, const NoiseLevels& levels, const ScheduleOptions& options) {
    if (levels.kind() == NoiseLevels::Kind::Flow) return flow_times(n, 1.0 / n, levels);
    check_over_betas("trailing", levels, "picks training timesteps");
    const double ratio = static_cast<double>(levels.count()) / n;
    std::vector<double> t;
    // std::nearbyint rounds halves to even, as numpy does.
    for (int i = 0; i < n; ++i) t.push_back(std::nearbyint(levels.count() - i * ratio) - 1);
    return spaced(t, levels, options.multistep);
}

}  // namespace

std::vector<NamedSchedule> schedules_of_diffusers() {
    return {{"leading", leading}, {"linspace", linspace}, {"trailing", trailing}};
}

}  // namespace sde::sampling
