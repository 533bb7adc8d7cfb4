// How a kernel becomes an operator of a ggml graph.
#pragma once

#include <vector>

#include "kernels/dispatch.h"
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

// Elements between two rows of a matrix, which may be a slice of a wider one.
inline int64_t row_stride(const Tensor& x) {
    return static_cast<int64_t>(x.raw()->nb[1] / sizeof(float));
}

// Keeps the operator's description with the graph; returns what ggml calls. Throws where
// SDENGINE_CPU names no instruction set: inside ggml's threads nothing could.
template <class Spec>
CustomOp<Spec>* keep_custom(Graph& graph, const Spec& spec,
                            void (*run)(Spec, const ggml_tensor*, kernels::Team&)) {
    kernels::chosen_isa();
    auto* op = graph.keep<CustomOp<Spec>>();
    op->spec = spec;
    op->run = run;
    return op;
}

template <class Spec>
void call_custom(ggml_tensor* dst, int rank, int size, void* data) {
    auto* self = static_cast<CustomOp<Spec>*>(data);
    kernels::Team team(rank, size, self->state);
    self->run(self->spec, dst, team);
}

// What profiles call an operator: its description's kName.
template <class Spec>
ggml_tensor* described(Graph& graph, ggml_tensor* op) {
    if constexpr (requires { Spec::kName; })
        graph.describe(op, Spec::kName);
    else
        graph.describe(op, "other");
    return op;
}

// Adds a float32 operator with ggml axes `ne`.
template <class Spec>
ggml_tensor* custom(Graph& graph, const std::vector<int64_t>& ne, Sources& sources,
                    const Spec& spec, void (*run)(Spec, const ggml_tensor*, kernels::Team&)) {
    int64_t full[4] = {1, 1, 1, 1};
    for (size_t i = 0; i < ne.size(); ++i) full[i] = ne[i];
    return described<Spec>(
        graph, ggml_custom_4d(graph.context(), GGML_TYPE_F32, full[0], full[1], full[2], full[3],
                              sources.tensors().data(), static_cast<int>(sources.tensors().size()),
                              call_custom<Spec>, GGML_N_TASKS_MAX, keep_custom(graph, spec, run)));
}

// Adds an operator that overwrites its first operand, which no operator but its own readers may
// read afterwards.
template <class Spec>
ggml_tensor* custom_in_place(Graph& graph, Sources& sources, const Spec& spec,
                             void (*run)(Spec, const ggml_tensor*, kernels::Team&)) {
    std::vector<ggml_tensor*>& all = sources.tensors();
    return described<Spec>(graph,
                           ggml_custom_inplace(graph.context(), all[0], all.data() + 1,
                                               static_cast<int>(all.size()) - 1, call_custom<Spec>,
                                               GGML_N_TASKS_MAX, keep_custom(graph, spec, run)));
}

}  // namespace sde::nn
