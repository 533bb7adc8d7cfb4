// ControlNet-Union (xinsir6/ControlNetPlus): one network for several kinds of control pictures,
// told which by a task embedding.
#pragma once

#include <vector>

#include "networks/control/controlnet.h"

namespace sde::networks {

class ControlNetUnion : public Network {
  public:
    ControlNetUnion(const nn::Scope& scope, const Config& config);

    // Inputs: those of a ControlNet, `task` [N, 1], and `task_embedding` [N, 256 * tasks], the
    // sinusoids of a list of tasks that is 1 for this one and 0 for the others.
    void forward(Graph& graph, const InputShapes& shapes, const Options& options) const override;

  private:
    // A layer of the transformer over condition tokens. Its attention was written, and trained,
    // along the wrong axis: a token attends to the same token of the other pictures in a batch, not
    // to other tokens. For the copies of one picture in a guided batch, which are equal, that is
    // the token itself. Only this is computed, so that a picture does not depend on its batch.
    class Layer {
      public:
        Layer(const nn::Scope& scope, int64_t width);
        nn::Tensor operator()(const nn::Tensor& x) const;

      private:
        nn::LayerNorm ln1_;
        nn::Linear value_, out_;
        nn::LayerNorm ln2_;
        nn::Linear fc_, proj_;
    };

    int64_t tasks_;
    ControlEncoder encoder_;
    HintEncoder hint_;
    nn::Embedding task_embedding_;
    TimeEmbedder add_embedding_;
    nn::Linear spatial_proj_;
    std::vector<Layer> layers_;
};

}  // namespace sde::networks
