// Memory that is reserved but holds nothing.
#pragma once

#include <cstddef>

namespace sde {

// Gives the pages that lie wholly in private memory back to the system; their contents are lost,
// the addresses stay good. False where the system has no such call, and then nothing has changed.
bool discard_pages(void* begin, size_t bytes);

}  // namespace sde
