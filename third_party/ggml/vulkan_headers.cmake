# ggml's Vulkan backend names one structure (VK_EXT_layer_settings, Vulkan headers 1.3.272) that the headers of
# some distributions lack (Debian 12: 1.3.239). Only a validation layer would read it; for older headers it is declared here.
include(CheckCXXSourceCompiles)
find_package(Vulkan REQUIRED)
set(CMAKE_REQUIRED_INCLUDES "${Vulkan_INCLUDE_DIRS}")
check_cxx_source_compiles("
  #include <vulkan/vulkan.hpp>
  int main() { return static_cast<int>(vk::LayerSettingTypeEXT::eBool32); }" SDENGINE_VULKAN_HAS_LAYER_SETTINGS)
unset(CMAKE_REQUIRED_INCLUDES)
if(NOT SDENGINE_VULKAN_HAS_LAYER_SETTINGS)
  target_include_directories(ggml-vulkan BEFORE PRIVATE "${CMAKE_CURRENT_LIST_DIR}/vulkan_headers")
endif()
