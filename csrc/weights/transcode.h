// Conversion of one tensor from a file into another type in another file.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "weights/store.h"

namespace sde {

// Writes the tensor as `dtype` at `offset` of the existing file `path` and returns the bytes
// written. A tensor that already has the type is copied bit for bit. Rows are converted by
// `threads` threads (0: one per physical core). Throws Weights for types that cannot be written,
// Output when writing fails. `edit`, if given, changes the values on their way.
using Edit = std::function<void(std::vector<float>&)>;
uint64_t transcode(const TensorSource& source, const std::string& path, uint64_t offset,
                   const DType& dtype, int threads, const Edit& edit = {});

}  // namespace sde
