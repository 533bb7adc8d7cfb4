"""Names and shapes of the parameters of Stable Diffusion 1.x and XL checkpoint files.

The hyper-parameters are those of the papers' public configurations (Rombach et al. 2022,
"High-Resolution Image Synthesis with Latent Diffusion Models"; Podell et al. 2023, "SDXL"), the
names those of the single-file checkpoints. Written out here, and not asked of the engine, so that
the engine is measured on a file that it did not design.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

Parameter = tuple[str, tuple[int, ...]]
"""A parameter's name in the file, and its shape in torch order."""


@dataclass(frozen=True)
class Size:
    """Widths and depths of the networks; the defaults are Stable Diffusion 1.5's."""

    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_blocks: int = 2
    """Residual blocks per resolution on the way down; the way up has one more."""
    unet_transformers: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks behind each residual block, per resolution."""
    middle_transformers: int = 1
    linear_projections: bool = False
    """Around the transformers, instead of 1x1 convolutions."""
    label_width: int = 0
    """The pooled text and the picture's sizes (SDXL)."""
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_blocks: int = 2
    text_width: int = 768
    text_layers: int = 12
    second_text_width: int = 0
    """OpenCLIP's text encoder, side by side with the first; 0 for none."""
    second_text_layers: int = 0
    vocabulary: int = 49408
    latent_channels: int = 4
    positions: int = 77

    @property
    def context_width(self) -> int:
        """Of what the denoiser's attention reads."""
        return self.text_width + self.second_text_width


FULL = Size()
SDXL = Size(
    unet_channels=(320, 640, 1280),
    unet_transformers=(0, 2, 10),
    middle_transformers=10,
    linear_projections=True,
    label_width=1280 + 6 * 256,
    second_text_width=1280,
    second_text_layers=32,
)


def checkpoint(size: Size = FULL) -> Iterator[Parameter]:
    """Every parameter of a checkpoint file."""
    two = size.second_text_width > 0
    first = "conditioner.embedders.0." if two else "cond_stage_model."
    networks = [
        ("model.diffusion_model.", unet(size)),
        ("first_stage_model.", autoencoder(size)),
        (f"{first}transformer.text_model.", text_encoder(size)),
    ]
    if two:
        networks.append(("conditioner.embedders.1.model.", second_text_encoder(size)))
    for prefix, parameters in networks:
        for name, shape in parameters:
            yield prefix + name, shape


def unet(size: Size) -> Iterator[Parameter]:
    """The denoiser."""
    channels = size.unet_channels
    first, time = channels[0], 4 * channels[0]
    yield from _linear("time_embed.0", first, time)
    yield from _linear("time_embed.2", time, time)
    if size.label_width:
        yield from _linear("label_emb.0.0", size.label_width, time)
        yield from _linear("label_emb.0.2", time, time)
    yield from _conv("input_blocks.0.0", size.latent_channels, first, 3)
    skips, width, index = [first], first, 1
    for level, wide in enumerate(channels):
        for _ in range(size.unet_blocks):
            block = f"input_blocks.{index}"
            yield from _unet_block(block, width, wide, size, size.unet_transformers[level])
            skips.append(width := wide)
            index += 1
        if level < len(channels) - 1:
            yield from _conv(f"input_blocks.{index}.0.op", wide, wide, 3)
            skips.append(wide)
            index += 1
    yield from _residual("middle_block.0", width, width, time)
    yield from _transformer("middle_block.1", width, size, size.middle_transformers)
    yield from _residual("middle_block.2", width, width, time)
    index = 0
    for level, wide in reversed(list(enumerate(channels))):
        depth = size.unet_transformers[level]
        for number in range(size.unet_blocks + 1):
            block = f"output_blocks.{index}"
            yield from _unet_block(block, width + skips.pop(), wide, size, depth)
            if level > 0 and number == size.unet_blocks:
                yield from _conv(f"{block}.{2 if depth else 1}.conv", wide, wide, 3)
            width = wide
            index += 1
    yield from _norm("out.0", first)
    yield from _conv("out.2", first, size.latent_channels, 3)


HINT_CHANNELS = (16, 16, 32, 32, 96, 96, 256)
"""Of the convolutions that bring a control picture to the size of the latents (Zhang et al. 2023)."""


def controlnet(size: Size) -> Iterator[Parameter]:
    """A ControlNet beside the denoiser: its way down and middle, and a convolution behind each block."""
    for name, shape in unet(size):
        if name.startswith(("time_embed.", "label_emb.", "input_blocks.", "middle_block.")):
            yield name, shape
    widths = list(_skips(size))
    for index, wide in enumerate(widths):
        yield from _conv(f"zero_convs.{index}.0", wide, wide, 1)
    yield from _conv("middle_block_out.0", widths[-1], widths[-1], 1)
    channels = (3, *HINT_CHANNELS, size.unet_channels[0])
    for index, (before, after) in enumerate(pairwise(channels)):
        yield from _conv(f"input_hint_block.{2 * index}", before, after, 3)


def _skips(size: Size) -> Iterator[int]:
    """Channels of what each block of the denoiser's way down hands over."""
    yield size.unet_channels[0]
    for level, wide in enumerate(size.unet_channels):
        yield from [wide] * size.unet_blocks
        if level < len(size.unet_channels) - 1:
            yield wide


def upscaler(width: int = 64, growth: int = 32, blocks: int = 23) -> Iterator[Parameter]:
    """Real-ESRGAN x4plus (Wang et al. 2021) under the names of its release."""
    yield from _conv("conv_first", 3, width, 3)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for number in range(1, 6):
                after = width if number == 5 else growth
                name = f"body.{block}.rdb{dense}.conv{number}"
                yield from _conv(name, width + (number - 1) * growth, after, 3)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        yield from _conv(name, width, width, 3)
    yield from _conv("conv_last", width, 3, 3)


def autoencoder(size: Size) -> Iterator[Parameter]:
    """Both halves of the KL autoencoder."""
    channels, latent = size.vae_channels, size.latent_channels
    yield from _conv("encoder.conv_in", 3, channels[0], 3)
    width = channels[0]
    for level, wide in enumerate(channels):
        for number in range(size.vae_blocks):
            yield from _vae_residual(f"encoder.down.{level}.block.{number}", width, wide)
            width = wide
        if level < len(channels) - 1:
            yield from _conv(f"encoder.down.{level}.downsample.conv", wide, wide, 3)
    yield from _vae_middle("encoder", width)
    yield from _norm("encoder.norm_out", width)
    yield from _conv("encoder.conv_out", width, 2 * latent, 3)
    yield from _conv("quant_conv", 2 * latent, 2 * latent, 1)

    yield from _conv("post_quant_conv", latent, latent, 1)
    yield from _conv("decoder.conv_in", latent, width, 3)
    yield from _vae_middle("decoder", width)
    for level, wide in reversed(list(enumerate(channels))):
        for number in range(size.vae_blocks + 1):
            yield from _vae_residual(f"decoder.up.{level}.block.{number}", width, wide)
            width = wide
        if level > 0:
            yield from _conv(f"decoder.up.{level}.upsample.conv", wide, wide, 3)
    yield from _norm("decoder.norm_out", width)
    yield from _conv("decoder.conv_out", width, 3, 3)


def text_encoder(size: Size) -> Iterator[Parameter]:
    """CLIP's text transformer."""
    width = size.text_width
    yield "embeddings.token_embedding.weight", (size.vocabulary, width)
    yield "embeddings.position_embedding.weight", (size.positions, width)
    for layer in range(size.text_layers):
        block = f"encoder.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{block}.self_attn.{projection}", width, width)
        yield from _norm(f"{block}.layer_norm1", width)
        yield from _linear(f"{block}.mlp.fc1", width, 4 * width)
        yield from _linear(f"{block}.mlp.fc2", 4 * width, width)
        yield from _norm(f"{block}.layer_norm2", width)
    yield from _norm("final_layer_norm", width)


def second_text_encoder(size: Size) -> Iterator[Parameter]:
    """OpenCLIP's text transformer, under its own names, with its projection."""
    width = size.second_text_width
    yield "token_embedding.weight", (size.vocabulary, width)
    yield "positional_embedding", (size.positions, width)
    for layer in range(size.second_text_layers):
        block = f"transformer.resblocks.{layer}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{block}.attn.out_proj", width, width)
        yield from _norm(f"{block}.ln_1", width)
        yield from _linear(f"{block}.mlp.c_fc", width, 4 * width)
        yield from _linear(f"{block}.mlp.c_proj", 4 * width, width)
        yield from _norm(f"{block}.ln_2", width)
    yield from _norm("ln_final", width)
    yield "text_projection", (width, width)


def _unet_block(name: str, before: int, after: int, size: Size, depth: int) -> Iterator[Parameter]:
    yield from _residual(f"{name}.0", before, after, 4 * size.unet_channels[0])
    if depth:
        yield from _transformer(f"{name}.1", after, size, depth)


def _residual(name: str, before: int, after: int, time: int) -> Iterator[Parameter]:
    yield from _norm(f"{name}.in_layers.0", before)
    yield from _conv(f"{name}.in_layers.2", before, after, 3)
    yield from _linear(f"{name}.emb_layers.1", time, after)
    yield from _norm(f"{name}.out_layers.0", after)
    yield from _conv(f"{name}.out_layers.3", after, after, 3)
    if before != after:
        yield from _conv(f"{name}.skip_connection", before, after, 1)


def _transformer(name: str, width: int, size: Size, depth: int) -> Iterator[Parameter]:
    yield from _norm(f"{name}.norm", width)
    yield from _around_transformer(f"{name}.proj_in", width, size)
    for number in range(depth):
        yield from _transformer_block(
            f"{name}.transformer_blocks.{number}", width, size.context_width
        )
    yield from _around_transformer(f"{name}.proj_out", width, size)


def _around_transformer(name: str, width: int, size: Size) -> Iterator[Parameter]:
    if size.linear_projections:
        yield from _linear(name, width, width)
    else:
        yield from _conv(name, width, width, 1)


def _transformer_block(block: str, width: int, context: int) -> Iterator[Parameter]:
    for attention, source in (("attn1", width), ("attn2", context)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, source)
        yield f"{block}.{attention}.to_v.weight", (width, source)
        yield from _linear(f"{block}.{attention}.to_out.0", width, width)
    yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)  # values and gates of GEGLU
    yield from _linear(f"{block}.ff.net.2", 4 * width, width)
    for number in (1, 2, 3):
        yield from _norm(f"{block}.norm{number}", width)


def _vae_residual(name: str, before: int, after: int) -> Iterator[Parameter]:
    yield from _norm(f"{name}.norm1", before)
    yield from _conv(f"{name}.conv1", before, after, 3)
    yield from _norm(f"{name}.norm2", after)
    yield from _conv(f"{name}.conv2", after, after, 3)
    if before != after:
        yield from _conv(f"{name}.nin_shortcut", before, after, 1)


def _vae_middle(name: str, width: int) -> Iterator[Parameter]:
    yield from _vae_residual(f"{name}.mid.block_1", width, width)
    yield from _norm(f"{name}.mid.attn_1.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.mid.attn_1.{projection}", width, width, 1)
    yield from _vae_residual(f"{name}.mid.block_2", width, width)


def _conv(name: str, before: int, after: int, kernel: int) -> Iterator[Parameter]:
    yield f"{name}.weight", (after, before, kernel, kernel)
    yield f"{name}.bias", (after,)


def _linear(name: str, before: int, after: int) -> Iterator[Parameter]:
    yield f"{name}.weight", (after, before)
    yield f"{name}.bias", (after,)


def _norm(name: str, width: int) -> Iterator[Parameter]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
