// Guidance: how the network's answers to several conditions become one estimate. Host float32.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/shape.h"
#include "sampling/prediction.h"

namespace sde::sampling {

// Defaults of these figures are those of sdengine/guidance.py.

// A part of the run as fractions of its steps: from floor(start * steps) up to, not including,
// floor(end * steps).
struct Interval {
    float start = 0.0f, end = 1.0f;
    bool holds(int step, int steps) const;
};

// Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416): the difference of the
// estimates gets a (negative) momentum, its norm a limit, and its part parallel to the estimate is
// weakened.
struct AdaptiveProjection {
    float eta;             // weight of the parallel part; 1 keeps it
    float norm_threshold;  // largest norm of the difference; 0: no limit
    float momentum;
};

// Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3): the estimate is
// clipped at a percentile of its magnitudes and divided by it, where that is above `floor`.
struct DynamicThreshold {
    float percentile;
    float floor;
};

// The same idea with a reference in place of a fixed range: the estimate of a high scale takes the
// spread that a lower one has, per channel ("CFG scale fix", mcmonkey's sd-dynamic-thresholding, in
// its mode of means and absolute deviations).
struct MimicScale {
    float scale;
    float percentile;
};

// Guidance away from the same network with some of its layers weakened: result += scale *
// (estimate - weakened estimate). Which layers, the network names.
struct LayerGuidance {
    std::vector<std::string> layers;
    float scale;
    Interval interval;
};

// Normalised attention guidance (Chen et al. 2025, arXiv 2505.21179), inside the cross-attentions.
struct NormalizedAttention {
    float scale;
    float tau;    // largest growth of the L1 norm
    float alpha;  // weight of the guided features against the plain ones
};

// CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): the negative prediction is scaled to fit the
// positive one best, and the first steps do not move.
struct ZeroStar {
    int zero_steps;
};

struct Guidance {
    // Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): negative + scale *
    // (positive - negative). One number, or one per step.
    std::vector<float> scales{1.0f};
    // Where scales other than 1 act (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    Interval interval;
    // Weight of a result with the positive prediction's standard deviation (Lin et al. 2023, arXiv
    // 2305.08891, section 3.4).
    float rescale = 0.0f;
    // Side in latents of the tokens whose norms stay those of the positive prediction (Qwen-Image,
    // arXiv 2508.02324, in diffusers); 0 leaves them to the scale.
    int token_side = 0;
    // Scale of the picture where there is an image branch (Brooks et al. 2023, arXiv 2211.09800).
    float image_scale = 1.0f;
    std::optional<AdaptiveProjection> projection;
    std::optional<DynamicThreshold> threshold;
    std::optional<MimicScale> mimic;
    std::optional<LayerGuidance> skip;     // layers left out (SLG, Stability AI 2024)
    std::optional<LayerGuidance> perturb;  // self-attention without attention (PAG, Ahn et al.
                                           // 2024, arXiv 2403.17377)
    std::optional<NormalizedAttention> nag;
    std::optional<ZeroStar> zero_star;
    // Every row of latents of the guided prediction keeps the norm of the positive one
    // (Lumina-Image 2.0 in diffusers).
    bool row_norms = false;

    // Throws Parameter when a number is out of its range.
    void check() const;
};

// Which predictions a step needs besides those of the positive branches.
struct Needs {
    bool nothing = false;  // not even the positive ones: the step does not move
    bool negative = false, image = false, skipped = false, perturbed = false;
};

// Raw predictions, each [pictures, channels, pixels]; empty where they are not needed.
struct Predictions {
    std::vector<std::vector<float>> positives, skipped, perturbed;  // one per positive branch
    std::vector<float> weights;                                     // of the positive branches
    std::vector<float> negative, image;
    bool with_image = false;  // the conditions are a text and a picture (InstructPix2Pix)
};

// All positive conditions at once (composition by AND, Liu et al. 2022, arXiv 2206.01714): negative
// + sum of weight * (positive - negative). Weights that add up to 1 need no negative.
std::vector<float> composed(const Predictions& predictions);

// The guidance of one run, with what it remembers from step to step.
class Guide {
  public:
    // Throws Parameter when `guidance` is out of range or does not fit the number of steps.
    // `latents` is their shape [N, C, h, w].
    Guide(Guidance guidance, int steps, const Shape& latents);

    // `weights` are those of the positive branches, `with_image` says that there is an image
    // branch.
    Needs needs(int step, std::span<const float> weights, bool with_image) const;

    // The estimate of the clean latents for x at noise level sigma.
    std::vector<float> estimate(int step, std::span<const float> x, float sigma,
                                const Prediction& prediction, Predictions predictions);

    const Guidance& guidance() const noexcept { return guidance_; }
    // What the next estimates depend on besides their arguments; empty before the first one.
    const std::vector<float>& momentum() const noexcept { return momentum_; }
    void set_momentum(std::vector<float> momentum) { momentum_ = std::move(momentum); }

  private:
    using Values = std::vector<float>;
    float scale(int step) const;
    float image_scale(int step) const;
    Values combine(int step, const Values& positive, const Predictions& predictions);
    Values project(const Values& positive, const Values& negative, float scale);
    void fit(const Values& positive, Values& negative) const;
    void rescale(const Values& positive, Values& out) const;
    void keep_norms(const Values& positive, Values& out) const;
    void keep_row_norms(const Values& positive, Values& out) const;
    void mimic(const Values& positive, const Values& negative, Values& out) const;
    void clip(Values& denoised) const;

    Guidance guidance_;
    int steps_;
    size_t pictures_, channels_, height_, width_;
    std::vector<float> momentum_;
};

}  // namespace sde::sampling
