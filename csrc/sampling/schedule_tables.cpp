#include "sampling/schedule_tables.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "sampling/gits_table.h"

namespace sde::sampling {
namespace {

using Table = std::vector<double>;

// Align Your Steps (Sabour et al. 2024, arXiv 2404.14507), ten steps: the figures that its authors
// published at research.nvidia.com/labs/toronto-ai/AlignYourSteps.
const Table kAysSd1 = {14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520,
                       1.8841921177,  1.3943805092, 0.9642583904, 0.6523686016,
                       0.3977456272,  0.1515232662, 0.0291671582};
const Table kAysSdxl = {14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769,
                        1.3405244945,  0.8620721141, 0.5550693289, 0.3798540708,
                        0.2332364134,  0.1114188177, 0.0291671582};

// The table at n + 1 evenly spaced places, linear in log sigma; the last one is for 0.
std::vector<double> resampled(const Table& table, int n) {
    std::vector<double> sigmas;
    const auto last = static_cast<int>(table.size()) - 1;
    for (int i = 0; i < n; ++i) {
        const double at = static_cast<double>(i) * last / n;
        const auto low = static_cast<size_t>(at);
        const double part = at - static_cast<double>(low);
        sigmas.push_back(
            std::exp((1 - part) * std::log(table[low]) + part * std::log(table[low + 1])));
    }
    return sigmas;
}

// The tables were made for Stable Diffusion's levels.
void check_levels(const char* name, const NoiseLevels& levels) {
    if (std::abs(levels.sigma_max() / 14.6146f - 1.0f) > 1e-3f)
        throw Error(ErrorKind::Parameter,
                    std::string("schedule ") + name +
                        " is a table for models whose largest sigma is 14.6146 (Stable Diffusion "
                        "1, 2 and XL), not " +
                        std::to_string(levels.sigma_max()) + "; choose another schedule");
}

}  // namespace

std::vector<double> align_your_steps(int n, const NoiseLevels& levels, bool sdxl) {
    check_levels("ays", levels);
    return resampled(sdxl ? kAysSdxl : kAysSd1, n);
}

std::vector<double> gits(int n, const NoiseLevels& levels, float coefficient) {
    check_levels("gits", levels);
    if (n < 2) throw Error(ErrorKind::Parameter, "schedule gits needs at least 2 steps");
    const double place = (coefficient - 0.8) / 0.05;
    const double nearest = std::nearbyint(place);
    if (!(std::abs(place - nearest) < 1e-3 && nearest >= 0 && nearest < kGitsCoefficients))
        throw Error(ErrorKind::Parameter, "the coefficient of gits is 0.80 to 1.50 by 0.05, not " +
                                              std::to_string(coefficient));
    return resampled(gits_row(static_cast<int>(nearest), std::min(n, kGitsMostSteps)), n);
}

}  // namespace sde::sampling
