#include "weights/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"
#include "runtime/library.h"

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace sde {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& why) {
    throw Error(ErrorKind::Format, to_utf8(path) + ": " + why);
}

}  // namespace

#ifdef _WIN32

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
    file_ = CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, 0,
                        nullptr);
    if (file_ == INVALID_HANDLE_VALUE) fail(path, "cannot be opened for reading");
    LARGE_INTEGER size;
    GetFileSizeEx(file_, &size);
    size_ = static_cast<uint64_t>(size.QuadPart);
    mapping_ = size_ ? CreateFileMappingW(file_, nullptr, PAGE_READONLY, 0, 0, nullptr) : nullptr;
    data_ =
        mapping_ ? static_cast<uint8_t*>(MapViewOfFile(mapping_, FILE_MAP_READ, 0, 0, 0)) : nullptr;
    if (!data_) {
        if (mapping_) CloseHandle(mapping_);
        CloseHandle(file_);
        fail(path, size_ ? "cannot be mapped into memory" : "is empty");
    }
}

MappedFile::~MappedFile() {
    UnmapViewOfFile(data_);
    CloseHandle(mapping_);
    CloseHandle(file_);
}

void MappedFile::check_length() const {}  // Windows does not let a mapped file be shortened

void MappedFile::release_pages() const {}  // Windows takes pages of files back when it needs to

#else

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
    file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file_ < 0) fail(path, std::string("cannot be opened for reading: ") + std::strerror(errno));
    struct stat info{};
    if (fstat(file_, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0) {
        close(file_);
        fail(path, "is empty or not a regular file");
    }
    size_ = static_cast<uint64_t>(info.st_size);
    void* data = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file_, 0);
    if (data == MAP_FAILED) {
        close(file_);
        fail(path, std::string("cannot be mapped into memory: ") + std::strerror(errno));
    }
    data_ = static_cast<uint8_t*>(data);
}

MappedFile::~MappedFile() {
    munmap(data_, size_);
    close(file_);
}

void MappedFile::check_length() const {
    struct stat info{};
    if (fstat(file_, &info) == 0 && static_cast<uint64_t>(info.st_size) >= size_) return;
    fail(path_, "has become shorter since it was loaded; load the model again");
}

void MappedFile::release_pages() const {
    madvise(data_, size_, MADV_DONTNEED);  // advice: without effect where it fails
}

#endif

const uint8_t* MappedFile::bytes(uint64_t offset, uint64_t size) const {
    if (offset > size_ || size > size_ - offset)
        fail(path_, "bytes " + std::to_string(offset) + " to " + std::to_string(offset + size) +
                        " were asked for, but the file ends at " + std::to_string(size_) +
                        "; it is truncated or changed since it was opened");
    return data_ + offset;
}

}  // namespace sde
