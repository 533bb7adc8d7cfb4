#include "weights/staying.h"

#include <algorithm>

namespace sde {

Staying::Staying(const std::vector<ggml_tensor*>& parameters, const StreamedBytes& bytes,
                 size_t keep) {
    size_t total = 0;
    for (const ggml_tensor* parameter : parameters) total += bytes(*parameter);
    const double share = total ? std::min(1.0, static_cast<double>(keep) / total) : 0.0;
    // Of all that was seen no more than its share stays: errors do not add up.
    size_t seen = 0, kept = 0;
    for (const ggml_tensor* parameter : parameters) {
        const size_t more = bytes(*parameter);
        seen += more;
        const size_t due = share < 1.0 ? static_cast<size_t>(share * seen) : seen;
        if (more == 0 || kept + more > due) continue;
        chosen_.insert(parameter);
        kept += more;
    }
}

}  // namespace sde
