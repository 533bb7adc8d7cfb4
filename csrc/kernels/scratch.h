// Working memory of one thread.
#pragma once

#include <cstddef>

namespace sde::kernels {

// Uninitialized memory of the calling thread, aligned to 64 bytes, valid until its next call of
// this function. It grows to the largest request (a kernel asks for at most about 4 MB, most for
// less than 1 MB) and is freed with the thread, so nothing is allocated once every operator of a
// network has run.
void* thread_scratch(size_t bytes) noexcept;

}  // namespace sde::kernels
