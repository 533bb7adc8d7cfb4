#include "stages/entries.h"

namespace sde {

Shape entry_shape(const HostArray& array, int64_t picture) {
    std::vector<int64_t> dims = array.shape.dims();
    dims[0] = 1;
    if (!array.lengths.empty()) dims[1] = array.lengths[static_cast<size_t>(picture)];
    return Shape(dims);
}

void append_entry(HostArray& to, const HostArray& from, int64_t picture) {
    const Shape entry = entry_shape(from, picture);
    std::vector<int64_t> dims = entry.dims();
    if (to.shape.rank() > 0) dims[0] += to.shape[0];
    to.shape = Shape(dims);
    // What is cut off lies at the end of an entry.
    const int64_t begin = picture * (from.shape.elements() / from.shape[0]);
    const auto copy = [&](auto& target, const auto& source) {
        if (source.empty()) return;
        const auto first = source.begin() + begin;
        target.insert(target.end(), first, first + entry.elements());
    };
    copy(to.floats, from.floats);
    copy(to.ids, from.ids);
}

HostArray gathered(const HostArray& array, const std::vector<int64_t>& pictures) {
    HostArray out;
    out.layout = array.layout;
    for (int64_t picture : pictures) append_entry(out, array, picture);
    return out;
}

}  // namespace sde
