"""How the denoiser's answers to several conditions become one estimate.

:class:`Guidance` names every kind; docs/guidance.md compares them and their cost. All of them are off by default, and
may be combined unless the class says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import ParameterError

Array = NDArray[np.float32]
Interval = tuple[float, float]
Norms = Literal["free", "token", "row"]
NORMS: tuple[Norms, ...] = get_args(Norms)


@dataclass(frozen=True)
class AdaptiveProjection:
    """Adaptive projected guidance, APG (Sadat et al. 2024, arXiv 2410.02416).

    High scales without oversaturation; the defaults are the paper's for SDXL.

    Attributes:
        eta: weight of the difference's part parallel to the estimate, -10..10; 1 keeps it, which is plain guidance.
        norm_threshold: largest L2 norm of the difference per picture, in latents' units; 0 sets no limit.
        momentum: weight of the earlier differences, -1..1; negative ones push in new directions.
    """

    eta: float = 0.0
    norm_threshold: float = 15.0
    momentum: float = -0.5


@dataclass(frozen=True)
class DynamicThreshold:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487), for models that work on pixels.

    Attributes:
        percentile: of an estimate's magnitudes per picture, 0..1; larger ones are clipped, and the result is brought
            into ``[-floor, floor]``.
        floor: estimates below it are left alone; 1 for pixels in -1..1.
    """

    percentile: float = 0.995
    floor: float = 1.0


@dataclass(frozen=True)
class MimicScale:
    """A high scale with the spread of a lower one, per channel ("Dynamic Thresholding", "CFG scale fix").

    Attributes:
        scale: the scale whose spread the estimate takes, 0..1000.
        percentile: share of the estimate's values that must fit before clipping, 0..1.
    """

    scale: float = 7.0
    percentile: float = 1.0


@dataclass(frozen=True)
class SkipLayers:
    """Skip-layer guidance, SLG (Stability AI 2024): away from the network without some of its layers.

    Attributes:
        layers: names as ``Network.guidance_layers`` lists them; a shorter name takes in everything below it
            ("mid_block"), a whole number is a place in that list.
        scale: strength, -1000..1000; 0 turns it off.
        interval: start and end as fractions of the steps.
    """

    layers: Sequence[str | int]
    scale: float = 2.8
    interval: Interval = (0.01, 0.2)


@dataclass(frozen=True)
class PerturbedAttention:
    """Perturbed-attention guidance, PAG (Ahn et al. 2024, arXiv 2403.17377).

    Away from the network whose self-attentions see only their own token.

    Attributes:
        layers: see :class:`SkipLayers`.
        scale: strength, -1000..1000; 0 turns it off.
        interval: start and end as fractions of the steps.
    """

    layers: Sequence[str | int] = ("mid_block",)
    scale: float = 3.0
    interval: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class NormalizedAttention:
    """Normalised attention guidance, NAG (Chen et al. 2025, arXiv 2505.21179).

    A negative prompt inside the cross-attentions, at one evaluation a step; for few-step models too.

    Attributes:
        scale: strength, 1..1000; 1 turns it off.
        tau: largest growth of a token's L1 norm, above 0.
        alpha: weight of the guided features, 0..1.
    """

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.5


@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero* (Fan et al. 2025, arXiv 2503.18886), for flow models.

    The negative prediction is scaled to fit the positive one, and the first steps do not move.

    Attributes:
        zero_steps: how many steps do not move; they cost no evaluation.
    """

    zero_steps: int = 1


@dataclass(frozen=True)
class Guidance:
    """What is done with the answers for the prompt, the negative prompt and other conditions.

    Raises:
        ParameterError: a number is out of its range, or not a number.

    Attributes:
        scale: classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), 0..1000; one number, or one per
            step. 1 costs one evaluation instead of two. None is the model's own, where a model is at hand, else 1.
        interval: start and end, as fractions of the steps, of where scales other than 1 act (Kynkaanniemi et al.
            2024, arXiv 2404.07724).
        rescale: 0..1, pulls the contrast of the result back (Lin et al. 2023, arXiv 2305.08891).
        image_scale: 0..1000, scale of the picture that an editing model is given (Brooks et al. 2023, arXiv
            2211.09800); read only where the run has an "image" branch.
        projection: see :class:`AdaptiveProjection`; not with an image branch.
        threshold: see :class:`DynamicThreshold`.
        mimic: see :class:`MimicScale`; not with an image branch.
        skip_layers: see :class:`SkipLayers`.
        perturbed_attention: see :class:`PerturbedAttention`.
        normalized_attention: see :class:`NormalizedAttention`.
        zero_star: see :class:`ZeroStar`; not with an image branch.
        norms: what of the guided prediction has the norm of the prompt's own: "token", every token of the denoiser
            (Qwen-Image, Wu et al. 2025, arXiv 2508.02324); "row", every row of latents (diffusers' Lumina2Pipeline,
            ``cfg_normalization``); "free", nothing. None is the model's own way.
    """

    scale: float | Sequence[float] | None = None
    interval: Interval = (0.0, 1.0)
    rescale: float = 0.0
    image_scale: float = 1.0
    projection: AdaptiveProjection | None = None
    threshold: DynamicThreshold | None = None
    mimic: MimicScale | None = None
    skip_layers: SkipLayers | None = None
    perturbed_attention: PerturbedAttention | None = None
    normalized_attention: NormalizedAttention | None = None
    zero_star: ZeroStar | None = None
    norms: Norms | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, np.ndarray):  # compares entry by entry
            object.__setattr__(self, "scale", self.scale.tolist())
        if self.norms not in (None, *NORMS):
            raise ParameterError(f"norms must be one of {', '.join(NORMS)}, not {self.norms!r}")
        try:
            self.native()
        except ParameterError:
            raise
        except (TypeError, ValueError, AttributeError):
            raise ParameterError(
                "guidance holds numbers, pairs of numbers and names of layers only, not "
                + repr(self)
            ) from None

    @property
    def scales(self) -> list[float]:
        """The scale as a list of one entry, or of one per step."""
        if self.scale is None:
            return [1.0]
        scales: Any = [self.scale] if isinstance(self.scale, (Real, str)) else self.scale
        return list(scales)

    @property
    def needs_negative(self) -> bool:
        """True if a negative prompt has any effect."""
        return self.normalized_attention is not None or any(s != 1.0 for s in self.scales)

    def unusual(self) -> dict[str, object]:
        """What differs from plain guidance, by name."""
        plain = Guidance(self.scale)
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != getattr(plain, f.name)
        }

    def native(self, token_side: int = 0) -> _core.Guidance:
        """What a run takes; `token_side` is that of the model's tokens in latents, where their norms are kept."""
        projection, threshold, mimic = self.projection, self.threshold, self.mimic
        nag, zero_star = self.normalized_attention, self.zero_star
        return _core.Guidance(
            scales=self.scales,
            interval=self.interval,
            rescale=self.rescale,
            image_scale=self.image_scale,
            projection=(projection.eta, projection.norm_threshold, projection.momentum)
            if projection
            else None,
            threshold=(threshold.percentile, threshold.floor) if threshold else None,
            mimic=(mimic.scale, mimic.percentile) if mimic else None,
            skip=_layers(self.skip_layers),
            perturb=_layers(self.perturbed_attention),
            nag=(nag.scale, nag.tau, nag.alpha) if nag else None,
            zero_steps=zero_star.zero_steps if zero_star else None,
            token_side=token_side,
            row_norms=self.norms == "row",
        )


def _layers(
    chosen: SkipLayers | PerturbedAttention | None,
) -> tuple[list[str], float, Interval] | None:
    if chosen is None:
        return None
    names = [chosen.layers] if isinstance(chosen.layers, str) else chosen.layers
    return [str(name) for name in names], chosen.scale, chosen.interval


def lcm_guidance_embedding(scale: float | Sequence[float], width: int) -> Array:
    """A guidance scale as latent consistency models read it (Luo et al. 2023, arXiv 2310.04378).

    It is the input ``guidance_embedding``, in place of a negative branch.

    Args:
        scale: one number, or one per picture.
        width: the UNet's ``time_cond_proj_dim``, 4 or more.

    Returns:
        Float32 ``[N, width]``: sines of ``1000 * (scale - 1)``, then cosines.

    Raises:
        ParameterError: a scale is not a finite number, or the width is too small.
    """
    scales = np.atleast_1d(np.asarray(scale, np.float32))
    if scales.ndim != 1 or not np.isfinite(scales).all():
        raise ParameterError(f"a guidance scale is a finite number, not {scale!r}")
    if width < 4:
        raise ParameterError(f"a guidance embedding has a width of 4 or more, not {width}")
    half = width // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = (scales[:, None] - 1.0) * np.float32(1000.0) * rates[None, :]
    embedding = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.pad(embedding, ((0, 0), (0, width - 2 * half))).astype(np.float32)
