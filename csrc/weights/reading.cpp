#include "weights/reading.h"

#include <algorithm>

namespace sde {
namespace {

// Linux maps that much of a file around a byte that is read, where it is in the file cache
// (fault_around_bytes in its mm/memory.c). Other systems were not measured.
constexpr size_t kMappedAround = size_t{64} << 10;

size_t rows_bytes(const ggml_tensor& lookup) {
    const auto rows = static_cast<size_t>(ggml_nelements(lookup.src[1]));
    return rows * (lookup.src[0]->nb[1] + kMappedAround);
}

}  // namespace

ReadInFile::ReadInFile(const Graph& graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph.operators()); ++i) {
        const ggml_tensor* node = ggml_graph_node(graph.operators(), i);
        if (computes_nothing(*node)) continue;
        for (const ggml_tensor* source : node->src) {
            if (!source) continue;
            const ggml_tensor* root = source->view_src ? source->view_src : source;
            if (!graph.is_parameter(root)) continue;
            const bool looks_up = node->op == GGML_OP_GET_ROWS && source == node->src[0];
            bytes_[root] += looks_up ? rows_bytes(*node) : ggml_nbytes(root);
        }
    }
}

size_t ReadInFile::of(const ggml_tensor& parameter) const {
    const auto found = bytes_.find(&parameter);
    const size_t all = ggml_nbytes(&parameter);
    return found == bytes_.end() ? all : std::min(found->second, all);
}

}  // namespace sde
