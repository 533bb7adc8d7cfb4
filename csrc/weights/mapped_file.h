// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace sde {

class MappedFile {
  public:
    // Throws Format when the file cannot be opened or is empty.
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    // The bytes at [offset, offset + size); throws Format when they do not lie inside the file.
    const uint8_t* bytes(uint64_t offset, uint64_t size) const;
    const std::filesystem::path& path() const noexcept { return path_; }
    // Throws Format when the file has become shorter: its pages are gone, and touching them would
    // end the process.
    void check_length() const;
    // Lets the system take back the memory of pages that were read; reading them again brings them
    // back, from the system's file cache while it has them.
    void release_pages() const;

  private:
    std::filesystem::path path_;
    uint8_t* data_ = nullptr;
    uint64_t size_ = 0;
#ifdef _WIN32
    void* file_ = nullptr;
    void* mapping_ = nullptr;
#else
    int file_ = -1;
#endif
};

}  // namespace sde
