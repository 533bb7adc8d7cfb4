"""Whether a generation fits into memory, said before its first step instead of minutes later."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .branches import Branch, Phases
from .devices import available_memory
from .errors import OutOfMemoryError
from .params import SEAMLESS, GenerateParameters

if TYPE_CHECKING:
    from .pipeline import Pipeline


def check_memory(
    pipeline: Pipeline, parameters: GenerateParameters, phases: Phases, tile: int | None
) -> None:
    """Refuse sizes whose activations are larger than what is free; weights are mapped and do not count.

    Args:
        pipeline: the model.
        parameters: of the generation.
        phases: its conditions.
        tile: side of the autoencoder's tiles, as the caller gave it.

    Raises:
        OutOfMemoryError: a step or the decoding would take more; the message says how much.
    """
    free = available_memory()
    if not free:
        return
    held = pipeline.denoiser.activation_bytes
    size = f"{parameters.width}x{parameters.height} (batch_size {parameters.batch_size})"
    smaller = "a smaller size or batch_size"
    needed = _step_bytes(pipeline, parameters, phases)
    if needed > free + held:
        tiles = smaller if parameters.tiled_diffusion else f"{smaller}, or tiled_diffusion=True"
        raise OutOfMemoryError(
            f"a step at {size} takes {_readable(needed)} of memory, and {_readable(free)} are free;"
            f" use {tiles}"
        )
    factor, channels = pipeline.plan.latents.factor, pipeline.plan.latents.channels
    latents = (
        *(parameters.batch_size, channels),
        *(parameters.height // factor, parameters.width // factor),
    )
    circular = SEAMLESS[parameters.seamless]
    needed = pipeline.vae.decoding_bytes(latents, decoder_tile(parameters, tile), circular)
    if needed > free + held + pipeline.vae.decoder.activation_bytes:
        tiles = f"tile=64, or {smaller}" if tile == 0 else smaller
        raise OutOfMemoryError(
            f"decoding {size} takes {_readable(needed)} of memory, and {_readable(free)} are free;"
            f" use {tiles}"
        )


def decoder_tile(parameters: GenerateParameters, tile: int | None) -> int | None:
    """Side of the autoencoder's tiles: what the caller gave, or that of the denoiser's."""
    tiles = parameters.tiled_diffusion
    cut = max(parameters.width, parameters.height) > parameters.tile_side
    return tiles.figures[0] if tile is None and tiles is not None and cut else tile


def _step_bytes(pipeline: Pipeline, parameters: GenerateParameters, phases: Phases) -> int:
    """Activations of the largest evaluation: of as many branches as are one batch."""
    width, height = (side // pipeline.plan.latents.factor for side in parameters.seen)
    channels = pipeline.plan.latents.channels
    most = 0
    for branches in {id(branches): branches for _, branches in phases}.values():
        together = Counter(_shapes(branch) for branch in branches)
        for shapes, count in together.items():
            given = {name: [count * shape[0], *shape[1:]] for name, shape in shapes}
            extra = given.pop("", [0, 0])[1]
            pictures = count * parameters.batch_size
            given["latents"] = [pictures, channels + extra, height, width]
            given["timesteps"] = [pictures]
            options = {"circular": SEAMLESS[parameters.seamless]}
            most = max(most, pipeline.denoiser.planned_bytes(given, options))
    return most


def _shapes(branch: Branch) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shapes of a branch's inputs; that of its extra channels under no name."""
    named = [(name, array.shape) for name, array in branch.inputs.items()]
    if branch.extra_channels is not None:
        named.append(("", branch.extra_channels.shape))
    return tuple(sorted(named))


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
