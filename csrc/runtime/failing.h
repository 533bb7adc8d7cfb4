// Failures on purpose, for tests; see also memory.h.
#pragma once

#include <cstdint>
#include <string>

namespace sde::testing {

// What is left of the n of `fail_allocation`.
int64_t allocations_until_failure();
// Fails as a backend does in the middle of a graph: it throws, or calls ggml_abort.
void fail_in_graph(bool by_abort, const std::string& message);

}  // namespace sde::testing
