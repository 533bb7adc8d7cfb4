// Step caching: at neighbouring noise levels most of a denoiser computes nearly the same, and takes
// it over from an earlier evaluation. Two methods, by the kind of network:
//
// - UNets: DeepCache (Ma et al. 2023, arXiv 2312.00858). A full evaluation keeps the features that
//   the last resnet reads; the next ones run the first convolution, that resnet and the output
//   layers alone.
// - Diffusion transformers: first-block cache (ParaAttention's; the idea of telling by an early
//   figure how much the output will change is TeaCache's, Liu et al. 2024, arXiv 2411.19108). The
//   first block is always run. Where what it does to the picture's tokens has changed by less than
//   a threshold since the last full evaluation, what the other blocks did then is added.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "stages/batches.h"

namespace sde {

struct CacheSettings {
    // Steps from one full one to the next at most; 1: every one is full.
    int interval;
    // Relative change (L1) of the first block's residual up to which the other blocks' is taken
    // over; no part of a UNet's method.
    float threshold;
    // Steps, counted from 0, that take nothing over from those before.
    std::vector<int> fresh;

    // Throws Parameter for figures out of range.
    void check() const;
};

// What was kept of the evaluations of a run. A copy is cheap: arrays are shared.
class StepCache {
  public:
    // Throws Parameter for a network without a method.
    StepCache(const CacheSettings& settings, const Runner& denoiser, int64_t pictures,
              std::vector<bool> fresh);

    // As evaluate() in branches.h, at a step of the run. Whether a picture takes something over is
    // decided for all its branches together, and does not depend on the other pictures. Where a
    // sampler evaluates a step twice, nothing is taken over within a full step: slopes that are
    // compared must come from the same network.
    int64_t evaluate(int step, Runner& denoiser, const std::vector<BranchCall>& calls,
                     std::span<const float> x, const Shape& latents, float timestep,
                     int64_t together, const CancelCheck& cancel);

    // Evaluations of single pictures that took something over.
    int64_t reused() const noexcept { return reused_; }
    void drop();

    std::string save() const;
    // Throws Format.
    void restore(const std::string& state);

  private:
    using Arrays = std::shared_ptr<const HostArrays>;  // of one picture
    struct Kept {
        int step = -1;                // of the full evaluation
        std::map<int, Arrays> parts;  // by the call's slot
    };
    class Pass;

    bool is_usable(const std::vector<BranchCall>& calls, int64_t picture) const;
    void evaluate_features(const Pass& pass);
    void evaluate_blocks(const Pass& pass);
    void finish_blocks(const Pass& pass, const Batch& batch, const HostArrays& inputs,
                       const std::vector<int64_t>& rows, bool reuse);
    void keep(const Batch& batch, const HostArrays& outputs, const std::vector<std::string>& names);
    void add_kept(const Batch& batch, HostArrays& inputs) const;

    CacheSettings settings_;
    networks::Reuse method_;
    std::vector<bool> fresh_;  // per step
    int step_ = -1;            // of the last evaluation
    int64_t reused_ = 0;
    std::vector<Kept> kept_;  // per picture
};

}  // namespace sde
