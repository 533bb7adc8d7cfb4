// A diffusion transformer cut behind its first block, for step caching: how much that block changes
// tells how much the others would (stages/step_cache.h).
#pragma once

#include <vector>

#include "networks/network.h"
#include "nn/dit.h"

namespace sde::networks {

// What a forward pass does at the cut, by the option `part`. The streams of tokens that the second
// block reads are `hidden_0`, `hidden_1`, ...; the first one holds the picture's tokens.
//   First: outputs `hidden_0`, ... and `change`, what the first block did to the picture's tokens.
//   Rest: inputs `hidden_0`, ...; outputs `prediction`, and `residual`, what the other blocks did.
//   Last: inputs `hidden_0`, ... and `residual`; output `prediction`.
// A forward pass is written for the whole; operators that no output of a part needs are not run.
class FirstBlock {
  public:
    // What a transformer of so many blocks offers to step caching.
    static Reuse offered(size_t blocks) { return blocks > 1 ? Reuse::FirstBlock : Reuse::None; }

    // The picture's tokens are [start, start + count) of their stream.
    FirstBlock(Graph& graph, const InputShapes& shapes, const Options& options, int64_t start,
               int64_t count);

    // Behind the first block, in front of which the first stream was `before`.
    void cut(const nn::Tensor& before, const std::vector<nn::Tensor*>& streams);
    // The outputs are made: nothing else is to be done.
    bool is_first() const noexcept { return part_ == Part::First; }
    // The block `index` is not run.
    bool skips(size_t index) const noexcept {
        return index > 0 && (part_ == Part::First || part_ == Part::Last);
    }
    // What the output layers read, where the blocks ended with the picture's tokens x.
    nn::Tensor finished(const nn::Tensor& x) const;

  private:
    nn::Tensor picture(const nn::Tensor& stream) const {
        return nn::slice_tokens(stream, start_, count_);
    }

    Graph& graph_;
    const InputShapes& shapes_;
    Part part_;
    int64_t start_, count_;
    nn::Tensor hidden_;  // the picture's tokens behind the first block
};

}  // namespace sde::networks
