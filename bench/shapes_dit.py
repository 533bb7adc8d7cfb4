"""Names and shapes of the parameters of FLUX.1 dev and Stable Diffusion 3.5 Medium, whole, in one file.

The hyper-parameters are those of the published configurations (black-forest-labs/flux, Stability-AI/sd3.5,
google/t5-v1_1-xxl), the names those of the files that people make of all components: the denoiser under its
authors' names, CLIP and T5 under transformers'. Written out here, and not asked of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import shapes
from shapes import Parameter


@dataclass(frozen=True)
class Flux:
    """FLUX.1 dev."""

    width: int = 3072
    head_width: int = 128
    double_blocks: int = 19
    single_blocks: int = 38
    context_width: int = 4096
    pooled_width: int = 768


@dataclass(frozen=True)
class MMDiT:
    """Stable Diffusion 3.5 Medium."""

    width: int = 1536
    head_width: int = 64
    blocks: int = 24
    dual_blocks: int = 13
    """The first ones have a second attention over the picture alone."""
    positions: int = 384 * 384
    context_width: int = 4096
    pooled_width: int = 2048


@dataclass(frozen=True)
class T5:
    """The encoder of T5 v1.1 XXL."""

    width: int = 4096
    hidden: int = 10240
    heads: int = 64
    head_width: int = 64
    layers: int = 24
    vocabulary: int = 32128
    buckets: int = 32


OTHERS = replace(shapes.SDXL, latent_channels=16)
"""The autoencoder and the CLIP encoders."""


@dataclass(frozen=True)
class Whole:
    """A model with everything that it needs."""

    denoiser: Flux | MMDiT
    t5: T5 = T5()
    others: shapes.Size = OTHERS
    """FLUX has the first CLIP encoder only."""


FLUX_DEV = Whole(Flux())
BLOCKS = Flux(double_blocks=1, single_blocks=1)
"""One block of each kind, at full width."""
SD35_MEDIUM = Whole(MMDiT())


def checkpoint(whole: Whole) -> Iterator[Parameter]:
    """Every parameter of the file."""
    flux = isinstance(whole.denoiser, Flux)
    networks = [
        ("model.diffusion_model.", denoiser(whole.denoiser)),
        ("first_stage_model.", autoencoder(whole.others)),
        ("text_encoders.clip_l.transformer.text_model.", shapes.text_encoder(whole.others)),
        ("text_encoders.t5xxl.transformer.", t5(whole.t5)),
    ]
    if not flux:
        networks.append(("text_encoders.clip_g.transformer.", clip_g(whole.others)))
        networks.append(("text_encoders.clip_l.transformer.", projection(whole.others.text_width)))
    for prefix, parameters in networks:
        for name, shape in parameters:
            yield prefix + name, shape


def blocks() -> Iterator[Parameter]:
    """A FLUX.1 of :data:`BLOCKS` with autoencoder and CLIP, and without T5: for peers that run whole models."""
    for prefix, parameters in (
        ("model.diffusion_model.", flux(BLOCKS)),
        ("first_stage_model.", autoencoder(OTHERS)),
        ("text_encoders.clip_l.transformer.text_model.", shapes.text_encoder(OTHERS)),
    ):
        for name, shape in parameters:
            yield prefix + name, shape


def denoiser(size: Flux | MMDiT) -> Iterator[Parameter]:
    """The network that predicts."""
    yield from flux(size) if isinstance(size, Flux) else mmdit(size)


def flux(size: Flux) -> Iterator[Parameter]:
    """FLUX.1's transformer."""
    width = size.width
    yield from _linear("img_in", 64, width)
    yield from _linear("txt_in", size.context_width, width)
    for name, before in (
        ("time_in", 256),
        ("guidance_in", 256),
        ("vector_in", size.pooled_width),
    ):
        yield from _linear(f"{name}.in_layer", before, width)
        yield from _linear(f"{name}.out_layer", width, width)
    for number in range(size.double_blocks):
        for stream in ("img", "txt"):
            block = f"double_blocks.{number}.{stream}"
            yield from _linear(f"{block}_mod.lin", width, 6 * width)
            yield from _linear(f"{block}_attn.qkv", width, 3 * width)
            yield f"{block}_attn.norm.query_norm.scale", (size.head_width,)
            yield f"{block}_attn.norm.key_norm.scale", (size.head_width,)
            yield from _linear(f"{block}_attn.proj", width, width)
            yield from _linear(f"{block}_mlp.0", width, 4 * width)
            yield from _linear(f"{block}_mlp.2", 4 * width, width)
    for number in range(size.single_blocks):
        block = f"single_blocks.{number}"
        yield from _linear(f"{block}.linear1", width, 7 * width)  # q, k, v and the feed-forward
        yield from _linear(f"{block}.linear2", 5 * width, width)
        yield f"{block}.norm.query_norm.scale", (size.head_width,)
        yield f"{block}.norm.key_norm.scale", (size.head_width,)
        yield from _linear(f"{block}.modulation.lin", width, 3 * width)
    yield from _linear("final_layer.adaLN_modulation.1", width, 2 * width)
    yield from _linear("final_layer.linear", width, 64)


def mmdit(size: MMDiT) -> Iterator[Parameter]:
    """Stable Diffusion 3.5's transformer."""
    width = size.width
    yield "x_embedder.proj.weight", (width, 16, 2, 2)
    yield "x_embedder.proj.bias", (width,)
    yield "pos_embed", (1, size.positions, width)
    yield from _linear("context_embedder", size.context_width, width)
    for name, before in (("t_embedder", 256), ("y_embedder", size.pooled_width)):
        yield from _linear(f"{name}.mlp.0", before, width)
        yield from _linear(f"{name}.mlp.2", width, width)
    for number in range(size.blocks):
        last, dual = number == size.blocks - 1, number < size.dual_blocks
        block = f"joint_blocks.{number}"
        yield from _mmdit_stream(f"{block}.x_block", size, 9 if dual else 6)
        if dual:
            yield from _mmdit_attention(f"{block}.x_block.attn2", size)
        if last:  # nobody reads the text behind it
            yield from _linear(f"{block}.context_block.adaLN_modulation.1", width, 2 * width)
            yield from _mmdit_attention(f"{block}.context_block.attn", size, out=False)
        else:
            yield from _mmdit_stream(f"{block}.context_block", size, 6)
    yield from _linear("final_layer.adaLN_modulation.1", width, 2 * width)
    yield from _linear("final_layer.linear", width, 64)


def t5(size: T5) -> Iterator[Parameter]:
    """T5's encoder."""
    inner = size.heads * size.head_width
    yield "shared.weight", (size.vocabulary, size.width)
    for number in range(size.layers):
        block = f"encoder.block.{number}.layer"
        for name in ("q", "k", "v"):
            yield f"{block}.0.SelfAttention.{name}.weight", (inner, size.width)
        yield f"{block}.0.SelfAttention.o.weight", (size.width, inner)
        if number == 0:
            name = f"{block}.0.SelfAttention.relative_attention_bias.weight"
            yield name, (size.buckets, size.heads)
        yield f"{block}.0.layer_norm.weight", (size.width,)
        yield f"{block}.1.DenseReluDense.wi_0.weight", (size.hidden, size.width)
        yield f"{block}.1.DenseReluDense.wi_1.weight", (size.hidden, size.width)
        yield f"{block}.1.DenseReluDense.wo.weight", (size.width, size.hidden)
        yield f"{block}.1.layer_norm.weight", (size.width,)
    yield "encoder.final_layer_norm.weight", (size.width,)


def autoencoder(size: shapes.Size) -> Iterator[Parameter]:
    """The 16-channel KL autoencoder, which has no convolutions around its latents."""
    for name, shape in shapes.autoencoder(size):
        if "quant_conv" not in name:
            yield name, shape


def clip_g(size: shapes.Size) -> Iterator[Parameter]:
    """OpenCLIP bigG's text transformer under transformers' names, with its projection."""
    width, layers = size.second_text_width, size.second_text_layers
    for name, shape in shapes.text_encoder(replace(size, text_width=width, text_layers=layers)):
        yield f"text_model.{name}", shape
    yield from projection(width)


def projection(width: int) -> Iterator[Parameter]:
    """Of the pooled text."""
    yield "text_projection.weight", (width, width)


def _mmdit_stream(block: str, size: MMDiT, modulations: int) -> Iterator[Parameter]:
    width = size.width
    yield from _linear(f"{block}.adaLN_modulation.1", width, modulations * width)
    yield from _mmdit_attention(f"{block}.attn", size)
    yield from _linear(f"{block}.mlp.fc1", width, 4 * width)
    yield from _linear(f"{block}.mlp.fc2", 4 * width, width)


def _mmdit_attention(name: str, size: MMDiT, out: bool = True) -> Iterator[Parameter]:
    yield from _linear(f"{name}.qkv", size.width, 3 * size.width)
    yield f"{name}.ln_q.weight", (size.head_width,)
    yield f"{name}.ln_k.weight", (size.head_width,)
    if out:
        yield from _linear(f"{name}.proj", size.width, size.width)


def _linear(name: str, before: int, after: int) -> Iterator[Parameter]:
    yield f"{name}.weight", (after, before)
    yield f"{name}.bias", (after,)
