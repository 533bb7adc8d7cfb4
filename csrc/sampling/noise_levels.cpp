#include "sampling/noise_levels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/error.h"

namespace sde::sampling {
namespace {

constexpr int kMaxTimesteps = 100000;
constexpr double kMaxShift = 1e4;  // beyond, float32 cannot tell the table's last entries apart
constexpr double kMaxSigma = 1e5;

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

void check_count(int count) {
    if (count < 1 || count > kMaxTimesteps)
        throw Error(ErrorKind::Parameter,
                    "a model has 1 to 100000 training timesteps, not " + std::to_string(count));
}

}  // namespace

NoiseLevels::NoiseLevels(const std::string& kind, double beta_start, double beta_end, int count,
                         bool zero_terminal_snr, bool nearest)
    : nearest_(nearest) {
    check_count(count);
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

NoiseLevels NoiseLevels::flow(double shift, int count, double multiplier) {
    check_count(count);
    if (!(shift > 0.0 && shift <= kMaxShift))
        throw Error(ErrorKind::Parameter,
                    "the shift of a flow model is above 0 and at most 10000, not " +
                        std::to_string(shift) + " (with mu, it is e^mu)");
    if (!(multiplier > 0.0 && multiplier <= kMaxTimesteps))
        throw Error(ErrorKind::Parameter,
                    "the multiplier of a flow model's time is above 0 and at "
                    "most 100000, not " +
                        std::to_string(multiplier));
    NoiseLevels levels(Kind::Flow);
    levels.shift_ = shift;
    levels.multiplier_ = multiplier;
    for (int i = 1; i <= count; ++i)
        levels.table_.push_back(static_cast<float>(levels.shifted(static_cast<double>(i) / count)));
    return levels;
}

NoiseLevels NoiseLevels::edm(double sigma_min, double sigma_max, int count) {
    check_count(count);
    if (!(sigma_min > 0.0 && sigma_min < sigma_max && sigma_max <= kMaxSigma))
        throw Error(ErrorKind::Parameter,
                    "a range of sigmas satisfies 0 < min < max <= 100000, not min " +
                        std::to_string(sigma_min) + ", max " + std::to_string(sigma_max));
    NoiseLevels levels(Kind::Edm);
    const double low = std::log(sigma_min), high = std::log(sigma_max);
    for (int i = 0; i < count; ++i) {
        const double part = count > 1 ? static_cast<double>(i) / (count - 1) : 1.0;
        levels.table_.push_back(static_cast<float>(std::exp(low + part * (high - low))));
    }
    return levels;
}

double NoiseLevels::shifted(double time) const {
    return shift_ * time / (1.0 + (shift_ - 1.0) * time);
}

float NoiseLevels::sigma(float timestep) const {
    if (kind_ == Kind::Flow) return static_cast<float>(timestep / multiplier_);
    if (kind_ == Kind::Edm) return static_cast<float>(std::exp(4.0 * timestep));
    const float t = std::clamp(timestep, 0.0f, static_cast<float>(count() - 1));
    const int low = static_cast<int>(t), high = std::min(low + 1, count() - 1);
    const double part = t - static_cast<float>(low);
    return static_cast<float>(
        std::exp((1.0 - part) * std::log(table_[low]) + part * std::log(table_[high])));
}

float NoiseLevels::timestep(float sigma) const {
    if (kind_ == Kind::Flow) return static_cast<float>(sigma * multiplier_);
    // Karras et al. 2022, table 1: c_noise.
    if (kind_ == Kind::Edm)
        return static_cast<float>(
            std::log(std::max<double>(sigma, std::numeric_limits<float>::min())) / 4.0);
    if (sigma <= table_.front()) return 0.0f;
    if (sigma >= table_.back()) return static_cast<float>(count() - 1);
    const auto high = std::upper_bound(table_.begin(), table_.end(), sigma) - table_.begin();
    const double below = std::log(table_[high - 1]), above = std::log(table_[high]);
    const double part = (std::log(sigma) - below) / (above - below);
    // Half way goes down, to the first of the two.
    if (nearest_) return static_cast<float>(part > 0.5 ? high : high - 1);
    return static_cast<float>(static_cast<double>(high - 1) + part);
}

float NoiseLevels::sigma_linear(float timestep) const {
    if (kind_ != Kind::Betas) return sigma(timestep);
    const float t = std::clamp(timestep, 0.0f, static_cast<float>(count() - 1));
    const int low = static_cast<int>(t), high = std::min(low + 1, count() - 1);
    const double part = t - static_cast<float>(low);
    return static_cast<float>(table_[low] +
                              part * (static_cast<double>(table_[high]) - table_[low]));
}

float NoiseLevels::timestep_of(int entry) const {
    return kind_ == Kind::Betas ? static_cast<float>(entry) : timestep(table_[entry]);
}

}  // namespace sde::sampling
