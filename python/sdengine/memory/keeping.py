"""A pipeline's limits of memory, kept: before a generation by a plan, on the way by a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from sdengine.autoencoder import TILES
from sdengine.errors import OutOfMemoryError
from sdengine.options import Texts
from sdengine.upscalers.upscaler import TILES as SIDES

from . import ground as grounds
from .choosing import Choice, Limits
from .footprint import DISK, OFFLOAD, RESIDENT, STREAM
from .plan import Placement, Plan
from .rehearsal import Rehearsal
from .scenario import scenes_of

if TYPE_CHECKING:
    from sdengine import _core
    from sdengine.autoencoder import Autoencoder
    from sdengine.pipeline import Pipeline
    from sdengine.run import RunInputs

Made = TypeVar("Made")
_NEXT = {RESIDENT: OFFLOAD, OFFLOAD: STREAM, STREAM: DISK}


class Memory:
    """What a pipeline may take, and how it is placed now.

    Attributes:
        limits: that were asked for.
        placement: how generations are run from now on.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self._pipeline, self.limits = pipeline, limits
        self.placement = Placement()
        _, self._libraries = grounds.resident_bytes()

    # --------------------------------------------------------------------------------- before
    def plan(
        self,
        prompt: Texts | None,
        negative_prompt: Texts | None,
        options: Mapping[str, Any],
        limits: Limits | None = None,
    ) -> Plan:
        """What a generation would take; nothing is taken.

        Raises:
            ParameterError: as those of :meth:`sdengine.Pipeline.generate`.
        """
        rehearsal = Rehearsal(self._pipeline)
        inputs = rehearsal.begin(prompt, negative_prompt, options)
        choice = self._choice(rehearsal, inputs, self.limits if limits is None else limits)
        return choice.plan(self._pipeline.model.title, inputs.parameters)

    def settle(
        self,
        prompt: Texts | None,
        negative_prompt: Texts | None,
        options: Mapping[str, Any],
    ) -> None:
        """Place the networks for all passes of a generation, where the pipeline has limits.

        Raises:
            OutOfMemoryError: no placement stays within them; the message names the smallest limit that works.
        """
        if not self._is_planned:
            return
        rehearsal = Rehearsal(self._pipeline)
        inputs = rehearsal.begin(prompt, negative_prompt, options)
        choice = self._choice(rehearsal, inputs, self.limits)
        if not choice.fits:
            raise OutOfMemoryError(choice.refusal(inputs.parameters))
        self._apply(choice.placement)

    def checked(self, inputs: RunInputs) -> RunInputs:
        """The inputs of a run with the batches that memory has room for.

        Raises:
            OutOfMemoryError: a step or the decoding takes more than what is free.
        """
        if self._is_planned:
            return replace(inputs, together=self.placement.together)
        choice = self._choice(Rehearsal(self._pipeline), inputs, Limits(), all_of_it=False)
        if not choice.fits:
            raise OutOfMemoryError(choice.refusal(inputs.parameters))
        return replace(inputs, together=choice.placement.together)

    def _choice(
        self, rehearsal: Rehearsal, inputs: RunInputs, limits: Limits, *, all_of_it: bool = True
    ) -> Choice:
        scenes = scenes_of(rehearsal, inputs, all_of_it=all_of_it)
        devices = {*self._pipeline.devices, *(scene.device for scene in scenes)}
        here = grounds.ground(devices, self._networks.values(), self._libraries)
        return Choice(scenes, here, limits)

    def _device_of(self, component: str) -> _core.Device:
        devices = self._pipeline.devices
        if component in self._pipeline.text_encoders.networks:
            return devices.text
        if component == "upscaler" and self._pipeline.upscaler is not None:
            return self._pipeline.upscaler.device
        of_vae = component.startswith("vae_") or component == "preview_decoder"
        return devices.vae if of_vae else devices.denoiser

    @property
    def _is_planned(self) -> bool:
        """Whether generations are planned from their beginning; else the steps are looked at alone."""
        own = any(device.has_own_memory for device in self._pipeline.devices)
        return own or self.limits.are_set

    @property
    def _networks(self) -> dict[str, _core.Network]:
        return self._pipeline.networks

    def _apply(self, placement: Placement) -> None:
        """Place the networks; nothing of former generations stays but the weights of those that are to."""
        for component, network in self._networks.items():
            network.release()
            network.release_weights()
            policy = placement.policies.get(component, OFFLOAD)
            network.set_residency(policy, keep=placement.keep.get(component, 0))
        vae = self._pipeline.vae
        vae.most_encoding, vae.most_decoding = placement.encoding, placement.decoding
        if self._pipeline.preview_vae is not None:
            self._pipeline.preview_vae.most_decoding = placement.previewing
        if self._pipeline.upscaler is not None:
            self._pipeline.upscaler.most = placement.upscaling
            self._pipeline.upscaler.kept = self.kept
        self.placement = placement

    # ------------------------------------------------------------------------------- on the way
    def kept(self, work: Callable[[], Made], *components: str) -> Made:
        """What `work` makes; when memory runs out, once more with its networks placed smaller.

        Args:
            work: may be done again after it failed.
            components: whose networks run.

        Raises:
            OutOfMemoryError: there is no smaller way.
        """
        while True:
            try:
                return work()
            except MemoryError as error:
                if not self._shrink(components):
                    if isinstance(error, OutOfMemoryError):
                        raise
                    raise OutOfMemoryError(f"memory ran out: {error}") from error

    def before_preview(self, vae: Autoencoder) -> None:
        """Make room for a preview by `vae` in the middle of a run, where generations are planned.

        The denoiser comes back with the next step.
        """
        if not self._is_planned:
            return
        if vae is self._pipeline.preview_vae and self.placement.preview_beside:
            return
        for network in (self._pipeline.denoiser, *(c.network for c in self._pipeline.controls)):
            network.rest()

    def smaller_steps(self, together: int, entries: int, components: tuple[str, ...]) -> int | None:
        """Entries of the next batches, after one of `together` (0 for all of `entries`) ran out of memory.

        None where there is no smaller way. With single entries the networks of `components` are placed smaller instead.
        """
        if together != 1 and entries > 1:
            self._apply(self.placement)
            return -(-(together or entries) // 2)
        return 1 if self._shrink(components) else None

    def _shrink(self, components: tuple[str, ...]) -> bool:
        """Place the networks of `components` one step smaller; False where there is no smaller way."""
        smaller = self._smaller_tiles(components) or self._next_policies(components)
        if smaller is None:
            return False
        self._apply(smaller)
        return True

    def _smaller_tiles(self, components: tuple[str, ...]) -> Placement | None:
        vae, placement = self._pipeline.vae, self.placement
        if "vae_encoder" in components:
            taken = self._next_tile(vae.encoder, "image", 3, vae.factor, placement.encoding)
            return None if taken is None else replace(placement, encoding=taken)
        if "vae_decoder" in components:
            channels = self._pipeline.model.latents.channels
            taken = self._next_tile(vae.decoder, "latents", channels, 1, placement.decoding)
            return None if taken is None else replace(placement, decoding=taken)
        tiny, upscaler = self._pipeline.preview_vae, self._pipeline.upscaler
        if "preview_decoder" in components and tiny is not None:
            channels = self._pipeline.model.latents.channels
            taken = self._next_tile(tiny.decoder, "latents", channels, 1, placement.previewing)
            return None if taken is None else replace(placement, previewing=taken)
        if "upscaler" in components and upscaler is not None:
            network, channels = upscaler.network, upscaler.plan.channels
            taken = self._next_tile(network, "image", channels, 1, placement.upscaling, SIDES)
            return None if taken is None else replace(placement, upscaling=taken)
        return None

    def _next_tile(
        self,
        network: _core.Network,
        name: str,
        channels: int,
        scale: int,
        most: int | None,
        sides: Sequence[int] = TILES,
    ) -> int | None:
        """Bytes of the largest tile that takes less than `most`; None where none does."""
        sizes = ([1, channels, side * scale, side * scale] for side in sides)
        taken = (network.planned_bytes({name: size}) for size in sizes)
        return next((size for size in taken if most is None or size < most), None)

    def _next_policies(self, components: tuple[str, ...]) -> Placement | None:
        policies = dict(self.placement.policies)
        if any(self.placement.keep.get(component) for component in components):
            others = {n: size for n, size in self.placement.keep.items() if n not in components}
            return replace(self.placement, keep=others)
        for component in components:
            now = policies.get(component, OFFLOAD)
            own = self._device_of(component).has_own_memory
            following = _NEXT.get(now) if own else {OFFLOAD: DISK}.get(now)
            if following is not None:
                policies[component] = following
        if policies == dict(self.placement.policies):
            return None
        return replace(self.placement, policies=policies)
