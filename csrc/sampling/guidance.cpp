#include "sampling/guidance.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace sde::sampling {
namespace {

using Values = std::vector<float>;

void in_range(const char* name, float value, float low, float high) {
    if (value >= low && value <= high) return;  // false for NaN
    const auto text = [](float number) {
        std::string digits = std::to_string(number);
        digits.erase(digits.find_last_not_of('0') + 1);
        if (digits.back() == '.') digits.pop_back();
        return digits;
    };
    throw Error(ErrorKind::Parameter, std::string(name) + " must be " + text(low) + " to " +
                                          text(high) + ", not " + text(value));
}

constexpr float kLargestScale = 1000.0f;

void check_interval(const char* name, const Interval& interval) {
    in_range((std::string(name) + " start").c_str(), interval.start, 0.0f, 1.0f);
    in_range((std::string(name) + " end").c_str(), interval.end, 0.0f, 1.0f);
    if (interval.start > interval.end)
        throw Error(ErrorKind::Parameter, std::string(name) + " must end after its start, not run" +
                                              " from " + std::to_string(interval.start) + " to " +
                                              std::to_string(interval.end));
}

void check_layers(const char* name, const LayerGuidance& layers) {
    in_range((std::string(name) + " scale").c_str(), layers.scale, -kLargestScale, kLargestScale);
    check_interval((std::string(name) + " interval").c_str(), layers.interval);
    if (layers.layers.empty())
        throw Error(ErrorKind::Parameter, std::string(name) + " needs the names of its layers");
}

double dot(std::span<const float> a, std::span<const float> b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
    return sum;
}

float deviation(std::span<const float> values) {
    double sum = 0.0, squares = 0.0;
    for (float v : values) sum += v;
    const double mean = sum / static_cast<double>(values.size());
    for (float v : values) squares += (v - mean) * (v - mean);
    return static_cast<float>(std::sqrt(squares / static_cast<double>(values.size())));
}

// The percentile of |values|, linear between neighbours (numpy's and torch's default).
float percentile_of_magnitude(std::span<const float> values, float percentile) {
    Values sizes(values.size());
    for (size_t i = 0; i < values.size(); ++i) sizes[i] = std::fabs(values[i]);
    const double at = static_cast<double>(percentile) * static_cast<double>(sizes.size() - 1);
    const auto below = static_cast<size_t>(at);
    std::nth_element(sizes.begin(), sizes.begin() + below, sizes.end());
    const float low = sizes[below];
    if (below + 1 == sizes.size()) return low;
    const float high = *std::min_element(sizes.begin() + below + 1, sizes.end());
    return low + static_cast<float>(at - static_cast<double>(below)) * (high - low);
}

float sum_of(std::span<const float> values) {
    float sum = 0.0f;
    for (float v : values) sum += v;
    return sum;
}

// out += scale * sum of weight * (positive - weakened)
void push_away(const Predictions& p, const std::vector<Values>& weakened, float scale,
               std::span<float> out) {
    for (size_t k = 0; k < weakened.size(); ++k)
        for (size_t i = 0; i < out.size(); ++i)
            out[i] += scale * p.weights[k] * (p.positives[k][i] - weakened[k][i]);
}

}  // namespace

bool Interval::holds(int step, int steps) const {
    constexpr float kRounding = 1e-4f;  // 0.7f * 10 is a little less than 7
    const auto at = [steps](float part) {
        return static_cast<int>(part * static_cast<float>(steps) + kRounding);
    };
    return step >= at(start) && step < at(end);
}

Values composed(const Predictions& p) {
    if (p.weights.size() == 1 && p.weights[0] == 1.0f) return p.positives[0];
    const float rest = 1.0f - sum_of(p.weights);
    Values out(p.positives[0].size(), 0.0f);
    if (rest != 0.0f)
        for (size_t i = 0; i < out.size(); ++i) out[i] = rest * p.negative[i];
    for (size_t k = 0; k < p.weights.size(); ++k)
        for (size_t i = 0; i < out.size(); ++i) out[i] += p.weights[k] * p.positives[k][i];
    return out;
}

void Guidance::check() const {
    if (scales.empty()) throw Error(ErrorKind::Parameter, "guidance needs a scale");
    for (float s : scales) in_range("guidance scale", s, 0.0f, kLargestScale);
    check_interval("guidance interval", interval);
    in_range("guidance rescale", rescale, 0.0f, 1.0f);
    in_range("token side", static_cast<float>(token_side), 0.0f, 64.0f);
    in_range("image scale", image_scale, 0.0f, kLargestScale);
    if (projection) {
        in_range("projection eta", projection->eta, -10.0f, 10.0f);
        in_range("projection norm_threshold", projection->norm_threshold, 0.0f, 1e6f);
        in_range("projection momentum", projection->momentum, -1.0f, 1.0f);
    }
    if (threshold) {
        in_range("threshold percentile", threshold->percentile, 0.0f, 1.0f);
        in_range("threshold floor", threshold->floor, 1e-6f, 1e6f);
    }
    if (mimic) {
        in_range("mimic scale", mimic->scale, 0.0f, kLargestScale);
        in_range("mimic percentile", mimic->percentile, 0.0f, 1.0f);
    }
    if (skip) check_layers("skip-layer guidance", *skip);
    if (perturb) check_layers("perturbed-attention guidance", *perturb);
    if (nag) {
        in_range("attention guidance scale", nag->scale, 1.0f, kLargestScale);
        in_range("attention guidance tau", nag->tau, 1e-6f, 1e6f);
        in_range("attention guidance alpha", nag->alpha, 0.0f, 1.0f);
    }
    if (zero_star && zero_star->zero_steps < 0)
        throw Error(ErrorKind::Parameter,
                    "zero_steps must be 0 or more, not " + std::to_string(zero_star->zero_steps));
}

Guide::Guide(Guidance guidance, int steps, const Shape& latents)
    : guidance_(std::move(guidance)),
      steps_(steps),
      pictures_(static_cast<size_t>(latents[0])),
      channels_(static_cast<size_t>(latents[1])),
      height_(static_cast<size_t>(latents[2])),
      width_(static_cast<size_t>(latents[3])) {
    guidance_.check();
    const int side = guidance_.token_side;
    if (side && (latents[2] % side || latents[3] % side))
        throw Error(
            ErrorKind::Parameter,
            "latents " + latents.text() + " are no whole tokens of side " + std::to_string(side));
    if (guidance_.scales.size() != 1 && guidance_.scales.size() != static_cast<size_t>(steps))
        throw Error(ErrorKind::Parameter, "guidance has " +
                                              std::to_string(guidance_.scales.size()) +
                                              " scales for a run of " + std::to_string(steps) +
                                              " steps; give one, or one per step");
}

float Guide::scale(int step) const {
    if (!guidance_.interval.holds(step, steps_)) return 1.0f;
    return guidance_.scales.size() == 1 ? guidance_.scales[0]
                                        : guidance_.scales[static_cast<size_t>(step)];
}

float Guide::image_scale(int step) const {
    return guidance_.interval.holds(step, steps_) ? guidance_.image_scale : 1.0f;
}

Needs Guide::needs(int step, std::span<const float> weights, bool with_image) const {
    const auto acts = [&](const std::optional<LayerGuidance>& layers) {
        return layers && layers->scale != 0.0f && layers->interval.holds(step, steps_);
    };
    const float text = scale(step), image = image_scale(step);
    if (with_image && (guidance_.projection || guidance_.mimic || guidance_.zero_star))
        throw Error(ErrorKind::Parameter,
                    "projection, mimic and zero_star know two conditions; they cannot be used with "
                    "an image branch");
    Needs needs;
    needs.nothing = guidance_.zero_star && step < guidance_.zero_star->zero_steps;
    needs.negative = with_image ? image != 1.0f : text != 1.0f;
    needs.negative |= sum_of(weights) != 1.0f;
    needs.image = with_image && text != image;
    needs.skipped = acts(guidance_.skip);
    needs.perturbed = acts(guidance_.perturb);
    return needs;
}

Guide::Values Guide::estimate(int step, std::span<const float> x, float sigma,
                              const Prediction& prediction, Predictions p) {
    const float text = scale(step);
    Values positive = composed(p);
    if (guidance_.zero_star && text != 1.0f) fit(positive, p.negative);
    // Projection and mimic work on estimates of the clean latents; everything else is linear, with
    // factors that add up to 1, and gives the same in predictions and in estimates.
    const bool in_estimates = text != 1.0f && (guidance_.projection || guidance_.mimic);
    const auto denoise = [&](Values& values) { prediction.denoise(x, values, sigma, values); };
    if (in_estimates) {
        denoise(positive);
        denoise(p.negative);
        for (auto* group : {&p.positives, &p.skipped, &p.perturbed})
            for (Values& values : *group) denoise(values);
    }
    Values out = combine(step, positive, p);
    if (guidance_.token_side && out != positive) keep_norms(positive, out);
    if (guidance_.row_norms && out != positive) keep_row_norms(positive, out);
    if (!p.skipped.empty()) push_away(p, p.skipped, guidance_.skip->scale, out);
    if (!p.perturbed.empty()) push_away(p, p.perturbed, guidance_.perturb->scale, out);
    if (guidance_.rescale > 0.0f && out != positive) rescale(positive, out);
    if (guidance_.mimic && text != 1.0f && text != guidance_.mimic->scale)
        mimic(positive, p.negative, out);
    if (!in_estimates) denoise(out);
    if (guidance_.threshold) clip(out);
    return out;
}

Guide::Values Guide::combine(int step, const Values& positive, const Predictions& p) {
    const float text = scale(step), image = image_scale(step);
    Values out = positive;
    if (p.with_image) {
        // Brooks et al. 2023, equation 3: negative + image scale * (image - negative) + text scale
        // * (positive - image). A prediction whose factor is 0 is absent.
        for (size_t i = 0; i < out.size(); ++i) {
            out[i] = text * positive[i];
            if (image != text) out[i] += (image - text) * p.image[i];
            if (image != 1.0f) out[i] += (1.0f - image) * p.negative[i];
        }
    } else if (text != 1.0f && guidance_.projection) {
        out = project(positive, p.negative, text);
    } else if (text != 1.0f) {
        for (size_t i = 0; i < out.size(); ++i)
            out[i] = p.negative[i] + text * (positive[i] - p.negative[i]);
    }
    return out;
}

Guide::Values Guide::project(const Values& positive, const Values& negative, float scale) {
    const AdaptiveProjection& options = *guidance_.projection;
    Values difference(positive.size());
    for (size_t i = 0; i < difference.size(); ++i) difference[i] = positive[i] - negative[i];
    if (options.momentum != 0.0f) {
        if (!momentum_.empty())
            for (size_t i = 0; i < difference.size(); ++i)
                difference[i] += options.momentum * momentum_[i];
        momentum_ = difference;
    }
    Values out = positive;
    const size_t size = out.size() / pictures_;
    for (size_t at = 0; at < out.size(); at += size) {
        const auto toward = std::span(positive).subspan(at, size);
        const auto step = std::span(difference).subspan(at, size);
        const double norm = std::sqrt(dot(step, step)), square = dot(toward, toward);
        const bool limited = options.norm_threshold > 0.0f && norm > options.norm_threshold;
        const double factor = (scale - 1.0) * (limited ? options.norm_threshold / norm : 1.0);
        const double parallel = square > 0.0 ? dot(step, toward) / square : 0.0;
        for (size_t i = 0; i < size; ++i)
            out[at + i] +=
                static_cast<float>(factor * (step[i] + (options.eta - 1.0) * parallel * toward[i]));
    }
    return out;
}

void Guide::fit(const Values& positive, Values& negative) const {
    constexpr double kEps = 1e-8;  // the authors' guard against an empty prediction
    const size_t size = negative.size() / pictures_;
    for (size_t at = 0; at < negative.size(); at += size) {
        const auto part = std::span(negative).subspan(at, size);
        const double factor =
            dot(std::span(positive).subspan(at, size), part) / (dot(part, part) + kEps);
        for (float& value : part) value *= static_cast<float>(factor);
    }
}

void Guide::rescale(const Values& positive, Values& out) const {
    const size_t size = out.size() / pictures_;
    for (size_t at = 0; at < out.size(); at += size) {
        const auto part = std::span(out).subspan(at, size);
        const float wanted = deviation(std::span(positive).subspan(at, size)),
                    found = deviation(part);
        const float factor =
            1.0f - guidance_.rescale + guidance_.rescale * (found > 0.0f ? wanted / found : 1.0f);
        for (float& value : part) value *= factor;
    }
}

void Guide::keep_norms(const Values& positive, Values& out) const {
    const auto side = static_cast<size_t>(guidance_.token_side);
    const size_t columns = width_ / side, tokens = height_ / side * columns;
    const size_t plane = height_ * width_;
    std::vector<double> wanted(tokens), found(tokens);
    const auto token = [&](size_t pixel) {
        return pixel / width_ / side * columns + pixel % width_ / side;
    };
    for (size_t at = 0; at < out.size(); at += channels_ * plane) {
        std::fill(wanted.begin(), wanted.end(), 0.0);
        std::fill(found.begin(), found.end(), 0.0);
        for (size_t i = 0; i < channels_ * plane; ++i) {
            const double p = positive[at + i], o = out[at + i];
            wanted[token(i % plane)] += p * p;
            found[token(i % plane)] += o * o;
        }
        for (size_t i = 0; i < channels_ * plane; ++i) {
            const size_t t = token(i % plane);
            if (found[t] > 0.0) out[at + i] *= static_cast<float>(std::sqrt(wanted[t] / found[t]));
        }
    }
}

void Guide::keep_row_norms(const Values& positive, Values& out) const {
    for (size_t at = 0; at < out.size(); at += width_) {
        const auto row = std::span(out).subspan(at, width_);
        const auto wanted = std::span(positive).subspan(at, width_);
        const double found = dot(row, row);
        if (found <= 0.0) continue;
        const auto factor = static_cast<float>(std::sqrt(dot(wanted, wanted) / found));
        for (float& value : row) value *= factor;
    }
}

void Guide::mimic(const Values& positive, const Values& negative, Values& out) const {
    const MimicScale& options = *guidance_.mimic;
    const size_t size = out.size() / (pictures_ * channels_);
    Values reference(size), centred(size);
    for (size_t at = 0; at < out.size(); at += size) {
        for (size_t i = 0; i < size; ++i)
            reference[i] = negative[at + i] + options.scale * (positive[at + i] - negative[at + i]);
        const auto part = std::span(out).subspan(at, size);
        const auto centre = [size](std::span<const float> from, std::span<float> to) {
            double sum = 0.0;
            for (float v : from) sum += v;
            const auto mean = static_cast<float>(sum / static_cast<double>(size));
            for (size_t i = 0; i < size; ++i) to[i] = from[i] - mean;
            return mean;
        };
        centre(reference, reference);
        const float mean = centre(part, centred);
        const float spread = percentile_of_magnitude(reference, 1.0f);
        const float limit = std::max(spread, percentile_of_magnitude(centred, options.percentile));
        if (limit == 0.0f) continue;
        for (size_t i = 0; i < size; ++i)
            part[i] = mean + std::clamp(centred[i], -limit, limit) / limit * spread;
    }
}

void Guide::clip(Values& denoised) const {
    const DynamicThreshold& options = *guidance_.threshold;
    const size_t size = denoised.size() / pictures_;
    for (size_t at = 0; at < denoised.size(); at += size) {
        const auto part = std::span(denoised).subspan(at, size);
        const float limit =
            std::max(options.floor, percentile_of_magnitude(part, options.percentile));
        for (float& value : part) value = std::clamp(value, -limit, limit) / limit * options.floor;
    }
}

}  // namespace sde::sampling
