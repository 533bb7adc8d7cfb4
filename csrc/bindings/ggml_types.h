// ggml's types by their names in ggml, for what compares kernels.
#pragma once

#include <string>

#include "base/error.h"
#include "ggml.h"

namespace sde::bindings {

// Throws Parameter for a name that is none.
inline ggml_type parse_ggml_type(const std::string& name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const ggml_type_traits* traits = ggml_get_type_traits(static_cast<ggml_type>(i));
        if (traits->type_name && name == traits->type_name && traits->blck_size > 0)
            return static_cast<ggml_type>(i);
    }
    throw Error(ErrorKind::Parameter, "unknown ggml type '" + name + "'");
}

}  // namespace sde::bindings
