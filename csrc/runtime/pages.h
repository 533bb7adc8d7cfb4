// Pages of memory: those that hold nothing, and those of files.
#pragma once

#include <cstddef>

namespace sde {

// Gives the pages that lie wholly in private memory back to the system; their contents are lost,
// the addresses stay good. False where the system has no such call, and then nothing has changed.
bool discard_pages(void* begin, size_t bytes);
// Asks for pages of megabytes where the memory has not been touched yet: a matrix of many rows lies
// in more small ones than the processor remembers. The system may have none.
void prefer_huge_pages(void* begin, size_t bytes);

// Pages of a file that is mapped for reading only leave memory until they are read again; whole
// pages around the bytes.
void release_file_pages(const void* begin, size_t bytes);
// They are read ahead of their use.
void fetch_file_pages(const void* begin, size_t bytes);

}  // namespace sde
