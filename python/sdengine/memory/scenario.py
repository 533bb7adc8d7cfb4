"""Which stages a generation has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sdengine.autoencoder import check_tile
from sdengine.hires import network_of
from sdengine.params import SEAMLESS, GenerateParameters

from .footprint import RESIDENT
from .rehearsal import Rehearsal
from .scenes import Coding, Denoising, Enlarging, Reading, Scene

if TYPE_CHECKING:
    from sdengine import _core
    from sdengine.pipeline import Pipeline
    from sdengine.run import RunInputs

_HINT_COPIES = 2
"""Times that a control picture is in memory once more while its network reads it: as the network's input, and with its
channels last."""


def decoder_tile(parameters: GenerateParameters, tile: int | None) -> int | None:
    """Side of the autoencoder's tiles: what the caller gave, or that of the denoiser's.

    Raises:
        ParameterError: what the caller gave is none.
    """
    check_tile(tile)
    tiles = parameters.tiled_diffusion
    cut = max(parameters.width, parameters.height) > parameters.tile_side
    return tiles.figures[0] if tile is None and tiles is not None and cut else tile


def scenes_of(rehearsal: Rehearsal, inputs: RunInputs, *, all_of_it: bool) -> list[Scene]:
    """The stages of a generation and of the pass that follows it.

    Args:
        rehearsal: of the generation.
        inputs: of its run.
        all_of_it: with what comes before the first step.
    """
    real = rehearsal.real
    devices = real.devices
    second = rehearsal.second(inputs)
    passes = [inputs] if second is None else [inputs, second]
    scenes: list[Scene] = []
    if all_of_it:
        control = {f"control_{i}" for i in range(len(real.controls))}
        apart = {real.model.family.denoiser, "vae_encoder", "vae_decoder", *control}
        works = [work for work in rehearsal.before_steps() if work.component not in apart]
        for work in works:
            is_text = work.component in real.text_encoders.networks
            device = devices.text if is_text else devices.denoiser
            scenes.append(Reading(work.component, (work.component,), device, work=work))
        scenes += _encoding(rehearsal, devices.vae)
    scenes += _stepping(rehearsal, inputs)
    if second is not None:
        scenes += _enlarging(real, inputs)
        scenes += _stepping(rehearsal, second, inputs)
    last = passes[-1]
    shape = max((each.start.x.shape for each in passes), key=lambda dims: dims[2] * dims[3])
    coded = partial(
        Coding, shape=shape, circular=SEAMLESS[last.parameters.seamless], device=devices.vae
    )
    if real.preview_vae is not None:
        scenes.append(coded("preview", ("preview_decoder",), vae=real.preview_vae))
    runs = [scene for scene in scenes if isinstance(scene, Denoising)]
    held = max(run.way(RESIDENT, run.counts()[0]).stage.arrays for run in runs)
    scenes.append(coded("decode", ("vae_decoder",), vae=real.vae, tile=last.tile, held=held))
    return scenes


def _stepping(
    rehearsal: Rehearsal, inputs: RunInputs, first: RunInputs | None = None
) -> list[Scene]:
    """What control networks make of their pictures, and then the steps; `first` is the pass before."""
    real, of_hires = rehearsal.real, "" if first is None else " of hires"
    own = [control.picture.nbytes for control in inputs.controls]
    given = sum(own) + (sum(c.picture.nbytes for c in first.controls) if first else 0)
    hints = [
        Reading(
            *(work.component + of_hires, (work.component,), real.devices.denoiser),
            work=work,
            given=given + _HINT_COPIES * max(own),
        )
        for work in rehearsal.hints(inputs)
    ]
    stepped = [c.net for c in inputs.controls if not real.controls[c.net].is_adapter]
    parts = [real.model.family.denoiser, *(f"control_{net}" for net in stepped)]
    steps = Denoising(
        *("steps" + of_hires, tuple(dict.fromkeys(parts)), real.devices.denoiser),
        rehearsal=rehearsal,
        inputs=inputs,
        given=given,
    )
    return [*hints, steps]


def _enlarging(real: Pipeline, inputs: RunInputs) -> list[Scene]:
    """What comes between the passes, where a network enlarges."""
    wanted, plan = inputs.parameters.hires, inputs.second
    assert wanted is not None
    assert plan is not None
    upscaler = network_of(real, wanted, plan.upscaler)
    if upscaler is None:
        return []
    return [
        Enlarging(
            *("upscale", ("upscaler",)),
            upscaler=upscaler,
            size=(inputs.parameters.width, inputs.parameters.height),
            pictures=inputs.parameters.batch_size,
            device=upscaler.device,
        )
    ]


def _encoding(rehearsal: Rehearsal, device: _core.Device) -> list[Scene]:
    """The encoding of the largest picture that was given."""
    asked = [
        one
        for work in rehearsal.before_steps()
        if work.component == "vae_encoder"
        for one in work.asked
    ]
    if not asked:
        return []
    largest = max(asked, key=lambda one: one.shapes["image"][2] * one.shapes["image"][3])
    return [
        Coding(
            *("encode", ("vae_encoder",)),
            vae=rehearsal.real.vae,
            shape=tuple(largest.shapes["image"]),
            circular=largest.options.get("circular", 0),
            device=device,
        )
    ]
