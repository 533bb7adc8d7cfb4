#include "kernels/scratch.h"

#include <cstdio>
#include <cstdlib>
#include <new>

namespace sde::kernels {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Block {
    void* data = nullptr;
    size_t bytes = 0;
    ~Block() { ::operator delete(data, kAlignment); }
};

}  // namespace

void* thread_scratch(size_t bytes) noexcept {
    thread_local Block block;
    if (bytes > block.bytes) {
        ::operator delete(block.data, kAlignment);
        block.data = ::operator new(bytes, kAlignment, std::nothrow);
        block.bytes = bytes;
        if (!block.data) {
            // A kernel runs inside ggml's threads, where an exception cannot pass.
            std::fprintf(stderr, "sdengine: no memory for %zu bytes of kernel scratch\n", bytes);
            std::abort();
        }
    }
    return block.data;
}

}  // namespace sde::kernels
