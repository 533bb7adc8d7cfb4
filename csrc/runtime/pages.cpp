#include "runtime/pages.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace sde {

#ifdef __linux__

bool discard_pages(void* begin, size_t bytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto address = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = (address + page - 1) / page * page;
    const uintptr_t last = (address + bytes) / page * page;
    return first < last &&
           madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) == 0;
}

#else

// Elsewhere the same advice does not promise to free anything.
bool discard_pages(void*, size_t) {
    return false;
}

#endif

}  // namespace sde
