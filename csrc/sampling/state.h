// A flat little-endian byte string in which generators and samplers keep their state, and the reader that refuses a
// string that is too short or too long instead of reading past its end.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace sde::sampling {

class StateWriter {
  public:
    template <typename T>
    void put(T value) {
        static_assert(std::is_trivially_copyable_v<T>);
        bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    }
    template <typename T>
    void put_all(const std::vector<T>& values) {
        static_assert(std::is_trivially_copyable_v<T>);
        put<uint64_t>(values.size());
        bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    }
    void put_text(std::string_view text) {
        put<uint64_t>(text.size());
        bytes_.append(text);
    }
    std::string take() { return std::move(bytes_); }

  private:
    std::string bytes_;
};

class StateReader {
  public:
    explicit StateReader(std::string_view bytes) : rest_(bytes) {}

    template <typename T>
    T get() {
        static_assert(std::is_trivially_copyable_v<T>);
        T value;
        std::memcpy(&value, take(1, sizeof(T)).data(), sizeof(T));
        return value;
    }
    template <typename T>
    std::vector<T> get_all() {
        const std::string_view bytes = take(get<uint64_t>(), sizeof(T));
        std::vector<T> values(bytes.size() / sizeof(T));
        if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
        return values;
    }
    std::string get_text() { return std::string(take(get<uint64_t>(), 1)); }

    void expect_end() const {
        if (!rest_.empty()) fail("has bytes left over");
    }
    [[noreturn]] static void fail(const std::string& what) {
        throw Error(ErrorKind::Parameter,
                    "the saved state " + what +
                        "; expected the unchanged bytes that save() of this version returned");
    }

  private:
    std::string_view take(uint64_t count, size_t size) {
        if (count > rest_.size() / size) fail("is cut short");
        const std::string_view taken = rest_.substr(0, count * size);
        rest_.remove_prefix(taken.size());
        return taken;
    }
    std::string_view rest_;
};

}  // namespace sde::sampling
