#include "stages/denoise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace sde {
namespace {

using Role = Branch::Role;
using Values = std::vector<float>;

const Branch* find(const Phase& phase, Role role) {
    for (const auto& branch : phase.branches)
        if (branch->role == role) return branch.get();
    return nullptr;
}

Values weights(const Phase& phase) {
    Values out;
    for (const auto& branch : phase.branches)
        if (branch->role == Role::Positive) out.push_back(branch->weight);
    return out;
}

bool finite(const Values& values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

void check_array(const std::string& name, const HostArray& array, int64_t pictures) {
    if (array.shape.rank() == 0 || array.shape[0] != pictures || array.shape.elements() == 0)
        throw Error(ErrorKind::Parameter,
                    "a branch's '" + name + "' has the shape " + array.shape.text() +
                        "; it must have " + std::to_string(pictures) + " entries, one per picture");
    if (!finite(array.floats))
        throw Error(ErrorKind::Parameter, "a branch's '" + name + "' holds NaN or infinity");
    const std::vector<int64_t>& lengths = array.lengths;
    if (lengths.empty()) return;
    const bool fit = array.shape.rank() >= 2 && std::ssize(lengths) == pictures &&
                     std::all_of(lengths.begin(), lengths.end(), [&](int64_t length) {
                         return length >= 1 && length <= array.shape[1];
                     });
    if (!fit)
        throw Error(ErrorKind::Parameter,
                    "a branch's lengths are one per picture, from 1 to the tokens of its '" + name +
                        "', which has the shape " + array.shape.text());
}

void check_map(const char* name, const HostArray& array, const Shape& latents, int64_t channels) {
    const Shape wanted{latents[0], channels, latents[2], latents[3]};
    if (!(array.shape == wanted))
        throw Error(ErrorKind::Parameter, std::string(name) + " must have the shape " +
                                              wanted.text() + ", not " + array.shape.text());
    if (!finite(array.floats))
        throw Error(ErrorKind::Parameter, std::string(name) + " holds NaN or infinity");
}

void check_branch(const Branch& branch, const Shape& latents) {
    if (!std::isfinite(branch.weight))
        throw Error(ErrorKind::Parameter, "a branch's weight must be a number");
    for (const auto& [name, array] : branch.inputs) check_array(name, array, latents[0]);
    if (branch.extra_channels.shape.rank() == 0) return;
    if (branch.extra_channels.shape.rank() != 4)
        throw Error(ErrorKind::Parameter,
                    "extra channels are [N, E, h, w], not " + branch.extra_channels.shape.text());
    check_map("extra channels", branch.extra_channels, latents, branch.extra_channels.shape[1]);
}

void check_phase(const Phase& phase, const Shape& latents) {
    int64_t count[3] = {};
    for (const auto& branch : phase.branches) {
        ++count[static_cast<int>(branch->role)];
        check_branch(*branch, latents);
    }
    const auto [positive, negative, image] = count;
    if (positive == 0 || negative > 1 || image > 1 || (image == 1 && positive > 1))
        throw Error(ErrorKind::Parameter,
                    "a phase has one positive branch or more, and at most one negative and one "
                    "image branch; with an image branch one positive. Found " +
                        std::to_string(positive) + " positive, " + std::to_string(negative) +
                        " negative, " + std::to_string(image) + " image");
}

void check_blend(const Blend& blend, const Shape& latents) {
    check_map("the original latents of a blend", blend.original, latents, latents[1]);
    check_map("the noise of a blend", blend.noise, latents, latents[1]);
    check_map("the mask of a blend", blend.mask, latents, 1);
    for (float m : blend.mask.floats)
        if (m < 0.0f || m > 1.0f)
            throw Error(ErrorKind::Parameter, "a blend's mask holds numbers from 0 to 1");
}

// Bit i for the i-th of `layers`. A name takes in everything below it ("mid_block"); a whole number
// is a place in the list.
int64_t layer_mask(const std::vector<std::string>& layers, const std::vector<std::string>& names) {
    constexpr size_t kMaskBits = 63;
    int64_t mask = 0;
    for (const std::string& name : names) {
        int64_t found = 0;
        for (size_t i = 0; i < std::min(layers.size(), kMaskBits); ++i) {
            const bool below = layers[i].rfind(name + ".", 0) == 0;
            if (layers[i] == name || below || std::to_string(i) == name) found |= int64_t{1} << i;
        }
        if (found) {
            mask |= found;
            continue;
        }
        std::string known;
        for (const std::string& layer : layers) known += (known.empty() ? "" : ", ") + layer;
        throw Error(ErrorKind::Parameter, "the network has no layer '" + name + "'; it has " +
                                              std::to_string(layers.size()) + ": " + known);
    }
    return mask;
}

std::unique_ptr<sampling::Sampler> first_sampler(const DenoiseSetup& setup) {
    auto sampler = setup.make_sampler();
    if (setup.latents.rank() != 4 || setup.latents.elements() == 0 ||
        static_cast<size_t>(setup.latents.elements()) != sampler->x().size())
        throw Error(ErrorKind::Parameter,
                    "latents of shape " + setup.latents.text() + " do not fit the sampler");
    return sampler;
}

}  // namespace

DenoiseRun::DenoiseRun(std::shared_ptr<const DenoiseSetup> setup)
    : setup_(std::move(setup)),
      sampler_(first_sampler(*setup_)),
      guide_(setup_->guidance, sampler_->steps(), setup_->latents) {
    for (const Phase& phase : setup_->phases) {
        check_phase(phase, setup_->latents);
        if (setup_->tiles) setup_->tiles->check(phase.branches, setup_->latents);
    }
    if (setup_->blend) check_blend(*setup_->blend, setup_->latents);
    for (const Control& control : setup_->controls)
        control.check(setup_->latents[0], sampler_->steps());
    check_phases();
    check_support();
    cache_ = first_cache();
}

// Nothing is taken over into a step with other texts or controls than the one before.
std::optional<StepCache> DenoiseRun::first_cache() const {
    if (!setup_->cache) return std::nullopt;
    if (setup_->tiles)
        throw Error(ErrorKind::Parameter, "step caching and tiled diffusion do not go together");
    std::vector<bool> fresh;
    for (int step = 0; step < sampler_->steps(); ++step)
        fresh.push_back(step > 0 &&
                        (&phase(step) != &phase(step - 1) ||
                         controls(Role::Positive, step) != controls(Role::Positive, step - 1)));
    return StepCache(*setup_->cache, *setup_->denoiser, setup_->latents[0], std::move(fresh));
}

// Every step must find the branches that its guidance needs.
void DenoiseRun::check_phases() const {
    const int steps = sampler_->steps();
    int from = 0;
    for (const Phase& phase : setup_->phases) {
        if (phase.until <= from)
            throw Error(ErrorKind::Parameter,
                        "phases end one after the other: a phase until step " +
                            std::to_string(phase.until) + " follows " + std::to_string(from));
        const bool with_image = find(phase, Role::Image) != nullptr;
        const bool negative = find(phase, Role::Negative) != nullptr;
        for (int step = from; step < std::min(phase.until, steps); ++step)
            if (guide_.needs(step, weights(phase), with_image).negative && !negative)
                throw Error(ErrorKind::Parameter, "the guidance at step " +
                                                      std::to_string(step + 1) +
                                                      " needs a negative branch; give one, or "
                                                      "use guidance scale 1");
        from = phase.until;
    }
    if (from < steps)
        throw Error(ErrorKind::Parameter, "the phases end at step " + std::to_string(from) +
                                              " of " + std::to_string(steps));
}

// What the network itself has to do for the guidance.
void DenoiseRun::check_support() {
    const sampling::Guidance& guidance = setup_->guidance;
    const Runner& denoiser = *setup_->denoiser;
    skipped_ = perturbed_ = setup_->options;
    const networks::GuidanceSupport support = denoiser.guidance_support();
    const auto expect = [&](bool can, const char* what) {
        if (!can)
            throw Error(ErrorKind::Parameter, "the network '" + denoiser.kind() +
                                                  "' does not offer " + what +
                                                  "; use another guidance");
    };
    if (guidance.skip) {
        expect(support.skip, "skip-layer guidance");
        skipped_["skip_layers"] = layer_mask(support.layers, guidance.skip->layers);
    }
    if (guidance.perturb) {
        expect(support.perturb, "perturbed-attention guidance");
        perturbed_["perturb_layers"] = layer_mask(support.layers, guidance.perturb->layers);
    }
    if (!guidance.nag || guidance.nag->scale == 1.0f) return;
    expect(support.normalized_attention, "normalised attention guidance");
    for (const Phase& phase : setup_->phases) {
        const Branch* negative = find(phase, Role::Negative);
        if (!negative || !negative->inputs.count("context"))
            throw Error(ErrorKind::Parameter,
                        "normalised attention guidance needs a negative branch with a context");
    }
    HostArray& figures = nag_["nag"];
    figures.shape = Shape{setup_->latents[0], 3};
    for (int64_t n = 0; n < setup_->latents[0]; ++n)
        for (float figure : {guidance.nag->scale, guidance.nag->tau, guidance.nag->alpha})
            figures.floats.push_back(figure);
}

void DenoiseRun::step(const CancelCheck& cancel) {
    if (cancel && cancel()) throw Error(ErrorKind::Cancelled, "the run was cancelled");
    const Values momentum = guide_.momentum();
    const std::optional<StepCache> cache = cache_;
    try {
        sampler_->step(
            [&](std::span<const float> x, float sigma, std::span<float> denoised,
                std::span<float> unguided) { denoise(x, sigma, denoised, unguided, cancel); });
    } catch (...) {
        guide_.set_momentum(momentum);
        cache_ = cache;
        throw;
    }
    if (setup_->blend) keep_original();
}

const Phase& DenoiseRun::phase(int step) const {
    return *std::find_if(setup_->phases.begin(), setup_->phases.end(),
                         [&](const Phase& phase) { return step < phase.until; });
}

float DenoiseRun::timestep(float sigma) const {
    const sampling::Schedule& schedule = setup_->schedule;
    for (size_t i = 0; i < schedule.timesteps.size(); ++i)
        if (schedule.sigmas[i] == sigma) return schedule.timesteps[i];
    return setup_->levels.timestep(sigma);
}

std::vector<ActiveControl> DenoiseRun::controls(Role role, int step) const {
    std::vector<ActiveControl> active;
    for (const Control& control : setup_->controls) {
        const float weight = control.weights[static_cast<size_t>(step)];
        if (weight != 0.0f && (role == Role::Positive || !control.positive_only))
            active.push_back({&control, weight});
    }
    return active;
}

std::vector<BranchCall> DenoiseRun::plan(const sampling::Needs& needs,
                                         sampling::Predictions& to) const {
    const Phase& now = phase();
    const size_t positives = weights(now).size();
    to.weights = weights(now);
    to.with_image = find(now, Role::Image) != nullptr;
    to.positives.resize(positives);
    to.skipped.resize(needs.skipped ? positives : 0);
    to.perturbed.resize(needs.perturbed ? positives : 0);
    HostArrays away = nag_;
    if (!away.empty()) away["nag_context"] = find(now, Role::Negative)->inputs.at("context");
    const networks::Options& plain = setup_->options;
    std::vector<BranchCall> calls;
    int slot = 0;  // every call that a step of this phase may have takes one
    const auto add = [&](bool needed, const Branch* branch, Values* prediction,
                         const networks::Options& options, const HostArrays& more) {
        if (needed)
            calls.push_back({branch, prediction, options, more,
                             controls(branch->role, sampler_->index()), slot});
        ++slot;
    };
    size_t at = 0;
    for (const auto& branch : now.branches) {
        if (branch->role != Role::Positive) continue;
        add(true, branch.get(), &to.positives[at], plain, away);
        add(needs.skipped, branch.get(), needs.skipped ? &to.skipped[at] : nullptr, skipped_, away);
        add(needs.perturbed, branch.get(), needs.perturbed ? &to.perturbed[at] : nullptr,
            perturbed_, away);
        ++at;
    }
    add(needs.negative, find(now, Role::Negative), &to.negative, plain, {});
    add(needs.image, find(now, Role::Image), &to.image, plain, {});
    return calls;
}

void DenoiseRun::denoise(std::span<const float> x, float sigma, std::span<float> denoised,
                         std::span<float> unguided, const CancelCheck& cancel) {
    const int step = sampler_->index();
    const Phase& now = phase();
    sampling::Needs needs = guide_.needs(step, weights(now), find(now, Role::Image) != nullptr);
    if (needs.nothing) {  // an estimate equal to x does not move it
        std::copy(x.begin(), x.end(), denoised.begin());
        if (!unguided.empty()) std::copy(x.begin(), x.end(), unguided.begin());
        return;
    }
    needs.negative |= !unguided.empty() && find(now, Role::Negative);
    Values input(x.begin(), x.end());
    const float scale = setup_->prediction.input_scale(sigma);
    for (float& value : input) value *= scale;
    sampling::Predictions predictions;
    std::vector<BranchCall> calls = plan(needs, predictions);
    Runner& denoiser = *setup_->denoiser;
    const Shape& latents = setup_->latents;
    const float time = timestep(sigma);
    const int64_t together = setup_->together;
    if (setup_->tiles)
        evaluations_ +=
            evaluate_tiled(*setup_->tiles, denoiser, calls, input, latents, time, together, cancel);
    else if (cache_)
        evaluations_ +=
            cache_->evaluate(step, denoiser, calls, input, latents, time, together, cancel);
    else
        evaluations_ += evaluate(denoiser, calls, input, latents, time, together, cancel);
    if (!unguided.empty())
        setup_->prediction.denoise(x, needs.negative ? predictions.negative : composed(predictions),
                                   sigma, unguided);
    const Values estimate =
        guide_.estimate(step, x, sigma, setup_->prediction, std::move(predictions));
    std::copy(estimate.begin(), estimate.end(), denoised.begin());
}

void DenoiseRun::keep_original() {
    constexpr float kSlack = 1e-3f;  // of a step: 0.4 is a rounding away from 4 steps of 10
    const Blend& blend = *setup_->blend;
    const float sigma = sampler_->sigma(), scale = setup_->prediction.latents_scale(sigma);
    Values x(sampler_->x().begin(), sampler_->x().end());
    const size_t pixels = static_cast<size_t>(setup_->latents[2] * setup_->latents[3]);
    const size_t channels = static_cast<size_t>(setup_->latents[1]);
    const float steps = static_cast<float>(sampler_->steps());
    const float done = static_cast<float>(sampler_->index());
    for (size_t i = 0; i < x.size(); ++i) {
        float mask = blend.mask.floats[i / (channels * pixels) * pixels + i % pixels];
        if (blend.differential) mask = (1.0f - mask) * steps > done - 1.0f + kSlack ? 0.0f : 1.0f;
        const float original = scale * blend.original.floats[i] + sigma * blend.noise.floats[i];
        x[i] = (1.0f - mask) * original + mask * x[i];
    }
    sampler_->set_x(std::move(x));
}

void DenoiseRun::set_latents(const HostArray& latents) {
    check_map("latents", latents, setup_->latents, setup_->latents[1]);
    sampler_->set_x(latents.floats);
    if (cache_) cache_->drop();  // of a state that is no more
}

std::string DenoiseRun::save() const {
    const Values& momentum = guide_.momentum();
    const auto count = static_cast<uint64_t>(momentum.size());
    std::string state(reinterpret_cast<const char*>(&evaluations_), sizeof(evaluations_));
    state.append(reinterpret_cast<const char*>(&count), sizeof(count));
    state.append(reinterpret_cast<const char*>(momentum.data()), count * sizeof(float));
    if (cache_) {
        const std::string cache = cache_->save();
        const auto size = static_cast<uint64_t>(cache.size());
        state.append(reinterpret_cast<const char*>(&size), sizeof(size));
        state += cache;
    }
    return state + sampler_->save();
}

void DenoiseRun::restore(const std::string& state) {
    int64_t evaluations;
    uint64_t count = 0;
    constexpr size_t kHead = sizeof(evaluations) + sizeof(count);
    const bool head = state.size() >= kHead;
    if (head) {
        std::memcpy(&evaluations, state.data(), sizeof(evaluations));
        std::memcpy(&count, state.data() + sizeof(evaluations), sizeof(count));
    }
    const bool fits = count == 0 || count == sampler_->x().size();
    if (!head || !fits || state.size() - kHead < count * sizeof(float))
        throw Error(ErrorKind::Format, "a saved run is damaged, or another run's");
    Values momentum(count);
    std::memcpy(momentum.data(), state.data() + kHead, count * sizeof(float));
    size_t at = kHead + count * sizeof(float);
    std::optional<StepCache> cache = cache_;
    if (cache) {
        uint64_t size = 0;
        const bool sized = state.size() - at >= sizeof(size);
        if (sized) std::memcpy(&size, state.data() + at, sizeof(size));
        at += sizeof(size);
        if (!sized || size > state.size() - at)
            throw Error(ErrorKind::Format, "a saved run is damaged, or another run's");
        cache->restore(state.substr(at, size));
        at += size;
    }
    sampler_->restore(state.substr(at));
    cache_ = std::move(cache);
    guide_.set_momentum(std::move(momentum));
    evaluations_ = evaluations;
}

std::unique_ptr<DenoiseRun> DenoiseRun::fork() const {
    auto copy = std::make_unique<DenoiseRun>(setup_);
    copy->restore(save());
    return copy;
}

}  // namespace sde
