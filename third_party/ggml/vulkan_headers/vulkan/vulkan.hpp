// The system's Vulkan header with VK_EXT_layer_settings added (see vulkan_headers.cmake). Layout and the type's
// number are those of the Vulkan specification, so that a layer that knows the extension can read it.
#pragma once

#include_next <vulkan/vulkan.hpp>

#include <vector>

namespace vk {

enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char* layer_name;
    const char* setting_name;
    LayerSettingTypeEXT type;
    uint32_t value_count;
    const void* values;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT>& list)
        : count(static_cast<uint32_t>(list.size())), settings(list.data()) {}

    uint32_t structure_type = 1000496000;
    const void* next = nullptr;
    uint32_t count;
    const LayerSettingEXT* settings;
};

}  // namespace vk
