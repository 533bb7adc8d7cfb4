#include "sampling/noise_levels.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace sde::sampling {
namespace {

constexpr int kMaxTimesteps = 100000;

// Evenly spaced float32 values, rounded as torch.linspace rounds them: from the near end, product
// and sum fused.
std::vector<float> linspace(float start, float end, int count) {
    const float step = count > 1 ? (end - start) / static_cast<float>(count - 1) : 0.0f;
    std::vector<float> values;
    for (int i = 0; i < count; ++i)
        values.push_back(i < count / 2 || count == 1
                             ? std::fma(step, static_cast<float>(i), start)
                             : std::fma(-step, static_cast<float>(count - 1 - i), end));
    return values;
}

std::vector<float> cosine_betas(int count) {
    const auto kept = [&](double t) {
        const double c = std::cos((t + 0.008) / 1.008 * std::numbers::pi / 2);
        return c * c;
    };
    std::vector<float> betas;
    for (int i = 0; i < count; ++i) {
        const double beta =
            1.0 - kept(static_cast<double>(i + 1) / count) / kept(static_cast<double>(i) / count);
        betas.push_back(static_cast<float>(std::min(beta, 0.999)));
    }
    return betas;
}

std::vector<float> make_betas(const std::string& kind, double start, double end, int count) {
    if (kind == "squaredcos_cap_v2") return cosine_betas(count);
    if (kind == "linear")
        return linspace(static_cast<float>(start), static_cast<float>(end), count);
    if (kind != "scaled_linear")
        throw Error(ErrorKind::Parameter,
                    "betas are scaled_linear, linear or squaredcos_cap_v2, not '" + kind + "'");
    std::vector<float> betas =
        linspace(static_cast<float>(std::sqrt(start)), static_cast<float>(std::sqrt(end)), count);
    for (float& root : betas) root *= root;
    return betas;
}

// abar of each timestep. Rounded to float32 where torch rounds, as the tables of the reference are.
std::vector<float> products(const std::vector<float>& betas) {
    std::vector<float> kept;
    double product = 1.0;
    for (float beta : betas) kept.push_back(static_cast<float>(product *= 1.0f - beta));
    return kept;
}

// Betas whose last abar is zero: the roots of abar are shifted, and scaled so that the first stays.
std::vector<float> rescale(const std::vector<float>& betas) {
    std::vector<float> roots = products(betas);
    for (float& root : roots) root = std::sqrt(root);
    const float first = roots.front(), last = roots.back();
    for (float& root : roots) root = (root - last) * (first / (first - last));
    std::vector<float> out{1.0f - roots[0] * roots[0]};
    for (size_t i = 1; i < roots.size(); ++i)
        out.push_back(1.0f - roots[i] * roots[i] / (roots[i - 1] * roots[i - 1]));
    return out;
}

}  // namespace

NoiseLevels::NoiseLevels(const std::string& kind, double beta_start, double beta_end, int count,
                         bool zero_terminal_snr) {
    if (count < 1 || count > kMaxTimesteps)
        throw Error(ErrorKind::Parameter,
                    "a model has 1 to 100000 training timesteps, not " + std::to_string(count));
    const bool ordered = beta_start > 0 && beta_start <= beta_end && beta_end < 1;
    if (kind != "squaredcos_cap_v2" && !ordered)
        throw Error(ErrorKind::Parameter, "betas must satisfy 0 < start <= end < 1");
    std::vector<float> betas = make_betas(kind, beta_start, beta_end, count);
    if (zero_terminal_snr && count > 1) betas = rescale(betas);
    std::vector<float> kept = products(betas);
    // Not quite zero, so that the last sigma is finite: diffusers' choice.
    if (zero_terminal_snr) kept.back() = 0x1p-24f;
    for (float value : kept) table_.push_back(std::sqrt((1.0f - value) / value));
}

float NoiseLevels::sigma(float timestep) const {
    const float t = std::clamp(timestep, 0.0f, static_cast<float>(count() - 1));
    const int low = static_cast<int>(t), high = std::min(low + 1, count() - 1);
    const double part = t - static_cast<float>(low);
    return static_cast<float>(
        std::exp((1.0 - part) * std::log(table_[low]) + part * std::log(table_[high])));
}

float NoiseLevels::timestep(float sigma) const {
    if (sigma <= table_.front()) return 0.0f;
    if (sigma >= table_.back()) return static_cast<float>(count() - 1);
    const auto high = std::upper_bound(table_.begin(), table_.end(), sigma) - table_.begin();
    const double below = std::log(table_[high - 1]), above = std::log(table_[high]);
    return static_cast<float>(high - 1 + (std::log(sigma) - below) / (above - below));
}

float NoiseLevels::sigma_linear(float timestep) const {
    const float t = std::clamp(timestep, 0.0f, static_cast<float>(count() - 1));
    const int low = static_cast<int>(t), high = std::min(low + 1, count() - 1);
    const double part = t - static_cast<float>(low);
    return static_cast<float>(table_[low] +
                              part * (static_cast<double>(table_[high]) - table_[low]));
}

}  // namespace sde::sampling
