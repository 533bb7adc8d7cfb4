"""The fields of the generation parameters: their labels, and their values as text.

:mod:`sdengine.metadata` lays them out and reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Final, NamedTuple

import numpy as np

# Labels of A1111 (its sd_samplers_*.py, sd_schedulers.py) by the names of sdengine; both sides are compared without
# case, spaces, _ and -. Names without a label there pass unchanged.
_SAMPLERS: Final = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpm++2s_a": "DPM++ 2S a",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m_sde": "DPM++ 2M SDE",
    "dpm++2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpm++3m_sde": "DPM++ 3M SDE",
    "dpm++sde": "DPM++ SDE",
    "lms": "LMS",
    "lcm": "LCM",
    "ddim": "DDIM",
    "euler_cfg_pp": "DDIM CFG++",
    "unipc_bh1": "UniPC",
}
_SCHEDULES: Final = {
    "discrete": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "ays": "Align Your Steps",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "turbo": "Turbo",
}
_UPSCALERS: Final = {
    "latent": "Latent",
    "latent-antialiased": "Latent (antialiased)",
    "latent-bicubic": "Latent (bicubic)",
    "latent-bicubic-antialiased": "Latent (bicubic antialiased)",
    "latent-nearest": "Latent (nearest)",
    "latent-nearest-exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}
# Labels that are read, and never written.
_OTHER_UPSCALERS: Final = {"None": "lanczos"}  # A1111 resizes with it where no network does
_OTHER_SAMPLERS: Final = {"PLMS": "ipndm"}
_OTHER_SCHEDULES: Final = {"Normal": "discrete"}
_GENERATORS: Final = {"torch-cpu": "CPU", "torch-cuda": "NV"}
_OTHER_GENERATORS: Final = {"GPU": "torch-cuda"}  # the same numbers, made on the device
_SEAMLESS: Final = {"xy": "True"}
_MASK_FILLS: Final = {"blur": "fill", "noise": "latent noise", "nothing": "latent nothing"}


class Field(NamedTuple):
    """One parameter."""

    name: str
    """Its key in a dict of parameters."""
    label: str
    """What it is called in the text."""
    to_text: Callable[[Any], str]
    from_text: Callable[[str], Any]
    """Raises ValueError."""


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _labelled(
    labels: Mapping[str, str], others: Mapping[str, str] | None = None
) -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    """Converters between sdengine's names and labels; unknown ones pass unchanged."""
    by_name = {_folded(name): label for name, label in labels.items()}
    by_label = {_folded(label): name for name, label in labels.items()}
    by_label.update({_folded(label): name for label, name in (others or {}).items()})
    return (
        lambda name: by_name.get(_folded(str(name)), str(name)),
        lambda label: by_label.get(_folded(label), label),
    )


# ------------------------------ values
def number(value: Any) -> str:
    """The shortest text that reads back as the same number; 7.0 becomes 7."""
    return str(value.item() if isinstance(value, np.generic) else value).removesuffix(".0")


def numbers_text(value: Any) -> str:
    """One number, or several with spaces between."""
    listed = value if isinstance(value, list | tuple | np.ndarray) else [value]
    return " ".join(map(number, listed))


def _floats(text: str) -> tuple[float, ...]:
    values = tuple(map(float, text.split()))
    if not values:
        raise ValueError("no number")
    return values


def _float_or_floats(text: str) -> float | tuple[float, ...]:
    values = _floats(text)
    return values[0] if len(values) == 1 else values


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _yes_no(value: Any) -> str:
    return "yes" if value else "no"


def _bool(text: str) -> bool:
    values = {"yes": True, "no": False, "True": True, "False": False}
    if text not in values:
        raise ValueError(f"expected yes or no, found {text!r}")
    return values[text]


def _choice(no: str, yes: str) -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    """Converters of a bool that A1111 writes as one of two phrases."""

    def from_text(text: str) -> bool:
        if text not in (no, yes):
            raise ValueError(f"expected {no!r} or {yes!r}, found {text!r}")
        return text == yes

    return lambda value: yes if value else no, from_text


def format_record(value: Any) -> str:
    """A dataclass or a mapping as ``name=value name=value``; the items of a list have slashes between."""
    items = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return " ".join(f"{name}={_item(item)}" for name, item in items.items())


def _item(value: Any) -> str:
    listed = value if isinstance(value, list | tuple) else [value]
    return "/".join(map(number, listed))


def parse_record(text: str) -> dict[str, Any]:
    """What :func:`format_record` wrote: numbers, words, and lists of them.

    Raises:
        ValueError: it is nothing of the kind.
    """
    record: dict[str, Any] = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"expected NAME=VALUE, found {pair!r}")
        items = [_number_or_word(item) for item in value.split("/")]
        record[name] = items[0] if len(items) == 1 else tuple(items)
    return record


def _number_or_word(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


_RECORD: Final = (format_record, parse_record)
_NUMBERS: Final = (numbers_text, _float_or_floats)

# In the order of the text. The labels are A1111's where it has the field.
FIELDS: Final[tuple[Field, ...]] = (
    Field("steps", "Steps", number, int),
    Field("sampler", "Sampler", *_labelled(_SAMPLERS, _OTHER_SAMPLERS)),
    Field("schedule", "Schedule type", *_labelled(_SCHEDULES, _OTHER_SCHEDULES)),
    Field("guidance_scale", "CFG scale", *_NUMBERS),
    Field("image_guidance_scale", "Image CFG scale", number, float),
    Field("seed", "Seed", number, int),
    Field("size", "Size", str, str),
    Field("model_hash", "Model hash", str, str),
    Field("model", "Model", str, str),
    Field("vae", "VAE", str, str),
    Field("arithmetic", "Arithmetic", str, str),
    Field("variation_seed", "Variation seed", number, int),
    Field("variation_strength", "Variation seed strength", number, float),
    Field("strength", "Denoising strength", number, float),
    Field("hires_scale", "Hires upscale", number, float),
    Field("hires_size", "Hires resize", str, str),
    Field("hires_steps", "Hires steps", number, int),
    Field("hires_upscaler", "Hires upscaler", *_labelled(_UPSCALERS, _OTHER_UPSCALERS)),
    Field("hires_strength", "Hires denoising strength", number, float),
    Field("hires_sampler", "Hires sampler", *_labelled(_SAMPLERS, _OTHER_SAMPLERS)),
    Field("hires_schedule", "Hires schedule type", *_labelled(_SCHEDULES, _OTHER_SCHEDULES)),
    Field("hires_guidance_scale", "Hires CFG Scale", number, float),
    Field("hires_prompt", "Hires prompt", str, str),
    Field("hires_negative_prompt", "Hires negative prompt", str, str),
    Field("clip_skip", "Clip skip", number, int),
    Field("eta", "Eta", number, float),
    Field("shift", "Shift", number, float),
    Field("s_churn", "Sigma churn", number, float),
    Field("s_tmin", "Sigma tmin", number, float),
    Field("s_tmax", "Sigma tmax", number, float),
    Field("s_noise", "Sigma noise", number, float),
    Field("noise", "RNG", *_labelled(_GENERATORS, _OTHER_GENERATORS)),
    Field("seamless", "Tiling", *_labelled(_SEAMLESS)),
    Field("cache", "Step cache", str, str),
    Field("refiner", "Refiner", str, str),
    Field("denoising_end", "Refiner switch at", number, float),
    Field("denoising_start", "Denoising start", number, float),
    Field("control_scales", "Control scale", numbers_text, _floats),
    Field("control_start", "Control start", numbers_text, _floats),
    Field("control_end", "Control end", numbers_text, _floats),
    Field("control_mode", "Control mode", str, str),
    Field("guess_mode", "Guess mode", _yes_no, _bool),
    Field("ip_scale", "IP-Adapter scale", number, float),
    Field("applied_loras", "Applied LoRAs", str, str),
    Field("batch_size", "Batch size", number, int),
    Field("batch_position", "Batch pos", number, int),
    Field("task", "Task", str, str),
    Field("resize_mode", "Resize mode", str, str),
    Field("invert_mask", "Mask mode", *_choice("Inpaint masked", "Inpaint not masked")),
    Field("mask_blur", "Mask blur", number, float),
    Field("only_masked", "Inpaint area", *_choice("Whole picture", "Only masked")),
    Field("mask_padding", "Masked area padding", number, int),
    Field("mask_fill", "Masked content", *_labelled(_MASK_FILLS)),
    Field("differential", "Differential diffusion", _yes_no, _bool),
    Field("outpaint", "Outpaint", *_NUMBERS),
    Field("reference_count", "References", number, int),
    Field("resize_references", "Resize references", _yes_no, _bool),
    Field("prompt_2", "Prompt 2", str, str),
    Field("negative_prompt_2", "Negative prompt 2", str, str),
    Field("sigmas", "Sigmas", numbers_text, _floats),
    Field("timesteps", "Timesteps", numbers_text, _whole_numbers),
    Field("order", "Order", number, int),
    Field("brownian", "Brownian noise", _yes_no, _bool),
    Field("compat", "Conventions", str, str),
    Field("weighting", "Prompt weighting", str, str),
    Field("sizes", "Size conditioning", *_RECORD),
    Field("negative_sizes", "Negative size conditioning", *_RECORD),
    Field("tiled_diffusion", "Tiled diffusion", *_RECORD),
    Field("true_cfg_scale", "True CFG scale", *_NUMBERS),
    Field("guidance_rescale", "CFG rescale", number, float),
    Field("interval", "CFG interval", numbers_text, _floats),
    Field("projection", "Adaptive projection", *_RECORD),
    Field("threshold", "Dynamic threshold", *_RECORD),
    Field("mimic", "Mimic scale", *_RECORD),
    Field("skip_layers", "Skip layers", *_RECORD),
    Field("perturbed_attention", "Perturbed attention", *_RECORD),
    Field("normalized_attention", "Normalized attention", *_RECORD),
    Field("zero_star", "CFG-Zero star", *_RECORD),
    Field("norms", "CFG norms", str, str),
)
BY_LABEL: Final = {field.label: field for field in FIELDS}
