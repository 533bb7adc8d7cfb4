// Where this library lies, and paths as UTF-8.
#pragma once

#include <filesystem>
#include <string>

namespace sde {

// The folder of the shared library that holds this function: the package's. Empty where the system
// does not tell.
std::filesystem::path library_folder();

std::filesystem::path from_utf8(const std::string& text);
std::string to_utf8(const std::filesystem::path& path);

}  // namespace sde
