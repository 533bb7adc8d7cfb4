#include "weights/reading.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sde {
namespace {

// Linux maps that much of a file around a byte that is read, where it is in the file cache
// (fault_around_bytes in its mm/memory.c). Other systems were not measured.
constexpr size_t kMappedAround = size_t{64} << 10;

// Rows nobody knows yet, each of them apart from the others.
size_t bytes_of_rows(size_t row_bytes, size_t rows) {
    return rows * (row_bytes + kMappedAround);
}

// Known rows: those that lie side by side, or nearly, are read as one piece.
size_t bytes_of_rows(size_t row_bytes, std::vector<int32_t> rows) {
    std::sort(rows.begin(), rows.end());
    size_t bytes = 0, end = 0;  // of the piece before
    for (const int32_t row : rows) {
        const size_t begin = static_cast<size_t>(row) * row_bytes, next = begin + row_bytes;
        const bool apart = bytes == 0 || begin > end + kMappedAround;
        bytes += apart ? row_bytes + kMappedAround : next - std::min(end, next);
        end = next;
    }
    return bytes;
}

size_t bytes_looked_up(const Graph& graph, const ggml_tensor& lookup) {
    const ggml_tensor& ids = *lookup.src[1];
    const size_t row_bytes = lookup.src[0]->nb[1];
    const auto count = static_cast<size_t>(ggml_nelements(&ids));
    // Ids that belong to the graph are there from the beginning.
    if (!graph.is_parameter(&ids) || !ids.data) return bytes_of_rows(row_bytes, count);
    const auto* rows = static_cast<const int32_t*>(ids.data);
    return bytes_of_rows(row_bytes, std::vector<int32_t>(rows, rows + count));
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
            bytes_[root] += looks_up ? bytes_looked_up(graph, *node) : ggml_nbytes(root);
        }
    }
}

size_t ReadInFile::of(const ggml_tensor& parameter) const {
    const auto found = bytes_.find(&parameter);
    const size_t all = ggml_nbytes(&parameter);
    return found == bytes_.end() ? all : std::min(found->second, all);
}

}  // namespace sde
