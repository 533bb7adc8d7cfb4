// What a graph reads of its parameters.
#pragma once

#include <cstddef>
#include <unordered_map>

#include "runtime/graph.h"

namespace sde {

// Bytes of a mapped file that the process holds when a graph has read its parameters there: of a
// table the rows that are looked up, of others all.
class ReadInFile {
  public:
    explicit ReadInFile(const Graph& graph);
    size_t of(const ggml_tensor& parameter) const;

  private:
    std::unordered_map<const ggml_tensor*, size_t> bytes_;
};

}  // namespace sde
