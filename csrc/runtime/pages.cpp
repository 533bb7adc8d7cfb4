#include "runtime/pages.h"

#ifndef _WIN32
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

void prefer_huge_pages(void* begin, size_t bytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto address = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = (address + page - 1) / page * page;
    // Without effect where it fails.
    if (first < address + bytes)
        madvise(reinterpret_cast<void*>(first), address + bytes - first, MADV_HUGEPAGE);
}

#else

// Elsewhere the same advice does not promise to free anything.
bool discard_pages(void*, size_t) {
    return false;
}
void prefer_huge_pages(void*, size_t) {}

#endif

#ifndef _WIN32

namespace {

void advise(const void* begin, size_t bytes, int advice) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto address = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = address / page * page;
    // Without effect where it fails.
    if (bytes) madvise(reinterpret_cast<void*>(first), address + bytes - first, advice);
}

}  // namespace

void release_file_pages(const void* begin, size_t bytes) {
    advise(begin, bytes, MADV_DONTNEED);
}

void fetch_file_pages(const void* begin, size_t bytes) {
    advise(begin, bytes, MADV_WILLNEED);
}

#else

// Windows takes pages of files back when it needs to.
void release_file_pages(const void*, size_t) {}
void fetch_file_pages(const void*, size_t) {}

#endif

}  // namespace sde
