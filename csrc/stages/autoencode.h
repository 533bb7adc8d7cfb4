// Pictures to latents and back, or to larger pictures, whole or in overlapping tiles.
#pragma once

#include "stages/runner.h"

namespace sde {

// Tiles are squares of `size` latents that overlap by `overlap` latents; size 0 means one piece.
struct Tiling {
    int64_t size = 0;
    int64_t overlap = 0;
    // Axes along which the picture wraps around: bit 1 is x, bit 2 is y.
    int64_t circular = 0;
};

// Latents are as the network has them, not yet scaled for the denoiser. `factor` is pixels per
// latent (8 for the KL autoencoders). Pictures of a batch are done one after the other: on a CPU
// that is as fast and takes 1 / N memory.
HostArray decode_latents(Runner& decoder, const HostArray& latents, int64_t factor,
                         const Tiling& tiling, const CancelCheck& cancel);

// Image [N, 3, H, W] in -1..1 -> what the encoder makes of it: moments [N, 2 * latent channels,
// H / factor, W / factor], or latents.
HostArray encode_image(Runner& encoder, const HostArray& image, int64_t factor,
                       const Tiling& tiling, const CancelCheck& cancel);

// Image [N, C, H, W] -> [N, C, H * factor, W * factor] by an upscaler that works on squares of
// `grid` points (windows, folded points). Tiles are counted in them, so that every tile begins at
// one; H and W are multiples of it.
HostArray upscale_image(Runner& upscaler, const HostArray& image, int64_t factor, int64_t grid,
                        const Tiling& tiling, const CancelCheck& cancel);

}  // namespace sde
