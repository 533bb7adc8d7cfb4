#include "runtime/split.h"

#include <algorithm>
#include <unordered_set>

#include "base/error.h"
#include "runtime/graph.h"

namespace sde {
namespace {

ggml_tensor* root_of(ggml_tensor* tensor) {
    return tensor->view_src ? tensor->view_src : tensor;
}

// What an operator reads, and what it overwrites.
template <class Visit>
void for_each_operand(ggml_tensor* node, const Visit& visit) {
    if (computes_nothing(*node)) return;
    for (ggml_tensor*& source : node->src)
        if (source) visit(source);
    if (node->view_src) visit(node->view_src);
}

// The device of every operator, by the bytes of parameters that those up to it read first.
std::vector<int> devices_by_weight(const Graph& graph, const std::vector<double>& shares) {
    const int count = ggml_graph_n_nodes(graph.operators());
    std::vector<double> read(static_cast<size_t>(count));
    std::unordered_set<const ggml_tensor*> seen;
    double total = 0;
    for (int i = 0; i < count; ++i) {
        for (ggml_tensor* source : ggml_graph_node(graph.operators(), i)->src)
            if (source && graph.is_parameter(root_of(source)) &&
                seen.insert(root_of(source)).second)
                total += static_cast<double>(ggml_nbytes(root_of(source)));
        read[i] = total;
    }
    std::vector<int> devices(static_cast<size_t>(count));
    size_t device = 0;
    double limit = shares[0] * total;
    for (int i = 0; i < count; ++i) {
        while (device + 1 < shares.size() && read[i] > limit) limit += shares[++device] * total;
        devices[i] = static_cast<int>(device);
    }
    return devices;
}

}  // namespace

Split::Split(const Graph& graph, const std::vector<double>& shares) : stand_ins_(shares.size()) {
    const int count = ggml_graph_n_nodes(graph.operators());
    // At worst every operand has a stand-in on every later device.
    const size_t most = static_cast<size_t>(count) * (2 + 2 * shares.size()) + 1024;
    context_.reset(ggml_init(
        {ggml_tensor_overhead() * most + ggml_graph_overhead_custom(most, false), nullptr, true}));
    if (!context_) throw Error(ErrorKind::OutOfMemory, "no memory for a graph's description");
    graph_ = ggml_new_graph_custom(context_.get(), most, false);

    const std::vector<int> devices = devices_by_weight(graph, shares);
    int current = 0;
    for (int i = 0; i < count; ++i) {
        ggml_tensor* node = ggml_graph_node(graph.operators(), i);
        // What only shows a tensor is where that is.
        if (computes_nothing(*node)) {
            append(node, home_of(root_of(node)));
            continue;
        }
        const int device = devices[i];
        if (device != current) {
            // All copies for a device are made before its first operator.
            for (int k = i; k < count && devices[k] == device; ++k)
                homes_[ggml_graph_node(graph.operators(), k)] = device;
            for (int k = i; k < count && devices[k] == device; ++k)
                for_each_operand(ggml_graph_node(graph.operators(), k),
                                 [&](ggml_tensor*& operand) { on_device(graph, operand, device); });
            current = device;
        }
        for_each_operand(
            node, [&](ggml_tensor*& operand) { operand = on_device(graph, operand, device); });
        append(node, device);
    }
    for (int i = 0; i < ggml_graph_n_nodes(graph_); ++i)
        nodes_.push_back(home_of(ggml_graph_node(graph_, i)));
}

int Split::home_of(const ggml_tensor* root) const {
    auto it = homes_.find(root);
    return it == homes_.end() ? 0 : it->second;
}

void Split::append(ggml_tensor* node, int device) {
    homes_[node] = device;
    ggml_build_forward_expand(graph_, node);
}

ggml_tensor* Split::copied(ggml_tensor* root, int device) {
    ggml_tensor*& copy = stand_ins_[device][root];
    if (copy) return copy;
    copy = ggml_dup_tensor(context_.get(), root);
    copy->op = GGML_OP_DUP;
    copy->src[0] = root;
    copies_[copy] = root;
    append(copy, device);
    return copy;
}

// The operand itself, or what stands for it on the device.
ggml_tensor* Split::on_device(const Graph& graph, ggml_tensor* source, int device) {
    ggml_tensor* root = root_of(source);
    if (graph.is_parameter(root) || home_of(root) == device) return source;
    ggml_tensor* copy = copied(root, device);
    if (source == root) return copy;
    ggml_tensor*& view = stand_ins_[device][source];
    if (view) return view;
    view = ggml_view_tensor(context_.get(), copy);
    std::copy_n(source->ne, GGML_MAX_DIMS, view->ne);
    std::copy_n(source->nb, GGML_MAX_DIMS, view->nb);
    view->view_offs = source->view_offs;
    view->op = GGML_OP_VIEW;
    view->src[0] = copy;
    append(view, device);
    return view;
}

}  // namespace sde
