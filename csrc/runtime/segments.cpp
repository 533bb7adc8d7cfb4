#include "runtime/segments.h"

#include <unordered_set>

#include "runtime/graph.h"

namespace sde {
namespace {

// What one operator reads.
struct Reads {
    std::vector<ggml_tensor*> parameters, views;
};

Reads reads_of(const Graph& graph, const ggml_tensor* node) {
    Reads reads;
    for (ggml_tensor* source : node->src) {
        if (!source) continue;
        ggml_tensor* root = source->view_src ? source->view_src : source;
        if (!graph.is_parameter(root)) continue;
        reads.parameters.push_back(root);
        if (root != source) reads.views.push_back(source);
    }
    return reads;
}

// The segment that grows, and what is in it already.
class Growing {
  public:
    Growing(const Graph& graph, int begin, const StreamedBytes& streamed_bytes)
        : streamed_bytes_(&streamed_bytes) {
        segment_.begin = begin;
        segment_.device = graph.device_of(begin);
        segment_.is_copy = graph.is_copy(begin);
    }
    // Whether the operator runs where this segment does.
    bool takes(const Graph& graph, int node) const {
        return segment_.device == graph.device_of(node) && segment_.is_copy == graph.is_copy(node);
    }
    bool empty() const { return segment_.streamed.empty(); }
    size_t bytes_with(const Reads& reads) const {
        size_t bytes = segment_.bytes;
        std::unordered_set<const ggml_tensor*> fresh;
        for (const ggml_tensor* tensor : reads.parameters)
            if (!seen_.count(tensor) && fresh.insert(tensor).second)
                bytes += (*streamed_bytes_)(*tensor);
        return bytes;
    }
    void add(const Reads& reads) {
        for (ggml_tensor* tensor : reads.parameters) {
            if (!seen_.insert(tensor).second) continue;
            const size_t bytes = (*streamed_bytes_)(*tensor);
            (bytes ? segment_.streamed : segment_.kept).push_back(tensor);
            segment_.bytes += bytes;
        }
        for (ggml_tensor* view : reads.views)
            if (seen_.insert(view).second) segment_.views.push_back(view);
    }
    Segment ended(int end) {
        segment_.end = end;
        return std::move(segment_);
    }

  private:
    const StreamedBytes* streamed_bytes_;
    Segment segment_;
    std::unordered_set<const ggml_tensor*> seen_;
};

}  // namespace

std::vector<Segment> cut_into_segments(const Graph& graph, size_t budget,
                                       const StreamedBytes& streamed_bytes) {
    std::vector<Segment> segments;
    const int count = ggml_graph_n_nodes(graph.operators());
    Growing growing(graph, 0, streamed_bytes);
    for (int i = 0; i < count; ++i) {
        const ggml_tensor* node = ggml_graph_node(graph.operators(), i);
        const bool computes = !computes_nothing(*node);
        const bool is_boundary =
            i > 0 && (i == graph.steady_operators() || (computes && !growing.takes(graph, i)));
        // Whoever reads a view counts what it shows.
        const Reads reads = computes ? reads_of(graph, node) : Reads{};
        const bool is_full = computes && !growing.empty() && growing.bytes_with(reads) > budget;
        if (is_boundary || is_full) {
            segments.push_back(growing.ended(i));
            growing = Growing(graph, i, streamed_bytes);
        }
        growing.add(reads);
    }
    segments.push_back(growing.ended(count));
    return segments;
}

}  // namespace sde
