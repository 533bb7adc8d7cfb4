// A graph in runs of consecutive operators whose weights are on a device at the same time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "ggml.h"

namespace sde {

class Graph;

struct Segment {
    int begin = 0, end = 0;  // of the graph's operators
    int device = 0;          // by index
    bool is_copy = false;    // its operators bring what earlier devices left
    // Parameters that its operators read, each once: those that come for this segment, in the order
    // of their first use, and those that stay.
    std::vector<ggml_tensor*> streamed, kept;
    // What operators read instead of a parameter: a part of it, or it in another shape.
    std::vector<ggml_tensor*> views;
    size_t bytes = 0;  // of `streamed`
};

struct Cut {
    uint64_t serial = 0, residence = 0;  // tell cuts apart, and what they were made for; 0 for none
    std::vector<Segment> segments;
};

// Bytes that a parameter takes for the segment; 0 if it stays.
using StreamedBytes = std::function<size_t(const ggml_tensor& parameter)>;

// The bytes of a segment do not exceed `budget`, but for those of one operator.
std::vector<Segment> cut_into_segments(const Graph& graph, size_t budget,
                                       const StreamedBytes& streamed_bytes);

}  // namespace sde
