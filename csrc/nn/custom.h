// How a kernel becomes an operator of a ggml graph.
#pragma once

#include <vector>

#include "kernels/team.h"
#include "nn/tensor.h"

namespace sde::nn {

// A kernel's description with the shared state of its team. `run(spec, dst, team)` fills in the
// addresses from dst->src and calls the kernel.
template <class Spec>
struct CustomOp {
    Spec spec;
    void (*run)(Spec spec, const ggml_tensor* dst, kernels::Team& team);
    kernels::TeamState state;
};

// The operands of a custom operator, some of them optional.
class Sources {
  public:
    static constexpr int kAbsent = -1;
    int add(ggml_tensor* tensor) {
        if (!tensor) return kAbsent;
        tensors_.push_back(tensor);
        return static_cast<int>(tensors_.size()) - 1;
    }
    int add(const Tensor& x) { return add(x.raw()); }
    std::vector<ggml_tensor*>& tensors() noexcept { return tensors_; }

  private:
    std::vector<ggml_tensor*> tensors_;
};

// The values of operand `index` at run time; null for an absent one.
inline const float* source(const ggml_tensor* dst, int index) {
    return index == Sources::kAbsent ? nullptr : static_cast<const float*>(dst->src[index]->data);
}

// Adds a float32 operator with ggml axes `ne`.
template <class Spec>
ggml_tensor* custom(Graph& graph, const std::vector<int64_t>& ne, Sources& sources,
                    const Spec& spec, void (*run)(Spec, const ggml_tensor*, kernels::Team&)) {
    auto* op = graph.keep<CustomOp<Spec>>();
    op->spec = spec;
    op->run = run;
    auto call = [](ggml_tensor* dst, int rank, int size, void* data) {
        auto* self = static_cast<CustomOp<Spec>*>(data);
        kernels::Team team(rank, size, self->state);
        self->run(self->spec, dst, team);
    };
    int64_t full[4] = {1, 1, 1, 1};
    for (size_t i = 0; i < ne.size(); ++i) full[i] = ne[i];
    return ggml_custom_4d(graph.context(), GGML_TYPE_F32, full[0], full[1], full[2], full[3],
                          sources.tensors().data(), static_cast<int>(sources.tensors().size()),
                          call, GGML_N_TASKS_MAX, op);
}

}  // namespace sde::nn
