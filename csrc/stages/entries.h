// Single pictures of arrays that hold one entry per picture.
#pragma once

#include "stages/runner.h"

namespace sde {

// Of the entry of one picture, [1, ...], cut to its own length.
Shape entry_shape(const HostArray& array, int64_t picture);

// Puts one picture's entry, cut to its own length, behind those of `to`.
void append_entry(HostArray& to, const HostArray& from, int64_t picture);

// The entries of `pictures`, in that order.
HostArray gathered(const HostArray& array, const std::vector<int64_t>& pictures);

}  // namespace sde
