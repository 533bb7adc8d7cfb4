// Which weights stay on a device while the others come and go.
#pragma once

#include <unordered_set>
#include <vector>

#include "runtime/segments.h"

namespace sde {

// A share of a network's parameters, as large as `keep` allows, spread evenly over the network.
//
// While one segment computes, the next one's weights are on their way, and no more than the next
// one's: there are two slots. A segment costs the longer of the two, so uploads are hidden best
// where every segment has the same share of them. A run of parameters that stay, at the front say,
// would let the bus rest while it computes, and hide not more than a single segment behind it; what
// comes after would wait as if nothing stayed. The choice knows parameters and not graphs: graphs
// of all shapes share what stays.
class Staying {
  public:
    // `parameters` in the order of their use; `bytes` that each takes where it may be streamed, 0
    // where it stays by itself.
    Staying(const std::vector<ggml_tensor*>& parameters, const StreamedBytes& bytes, size_t keep);

    bool has(const ggml_tensor* parameter) const { return chosen_.count(parameter) != 0; }

  private:
    std::unordered_set<const ggml_tensor*> chosen_;
};

}  // namespace sde
