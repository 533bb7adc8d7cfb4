#include "runtime/library.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace sde {

std::filesystem::path library_folder() {
#ifdef _WIN32
    HMODULE module = nullptr;
    const DWORD how =
        GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(how, reinterpret_cast<LPCWSTR>(&library_folder), &module)) return {};
    std::wstring name(32768, L'\0');
    name.resize(GetModuleFileNameW(module, name.data(), static_cast<DWORD>(name.size())));
    return std::filesystem::path(name).parent_path();
#else
    Dl_info info{};
    if (!dladdr(reinterpret_cast<const void*>(&library_folder), &info) || !info.dli_fname)
        return {};
    std::error_code failed;
    const std::filesystem::path path = std::filesystem::absolute(info.dli_fname, failed);
    return failed ? std::filesystem::path() : path.parent_path();
#endif
}

std::filesystem::path from_utf8(const std::string& text) {
    return std::filesystem::path(std::u8string(text.begin(), text.end()));
}

std::string to_utf8(const std::filesystem::path& path) {
    const std::u8string text = path.u8string();
    return std::string(text.begin(), text.end());
}

}  // namespace sde
