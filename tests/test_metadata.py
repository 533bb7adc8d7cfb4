"""Generation parameters as text: A1111's convention, and back without loss."""

from __future__ import annotations

import math
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from sdengine.errors import FormatError, ParameterError
from sdengine.guidance import NORMS
from sdengine.hires import LATENT
from sdengine.images import save
from sdengine.masks import FILLS
from sdengine.metadata import (
    format_parameters,
    parse_parameters,
    read_parameters,
    read_parameters_text,
)
from sdengine.metadata_fields import FIELDS
from sdengine.sampling import SAMPLERS, SCHEDULES

FULL: dict[str, Any] = {
    "prompt": "a red circle, on a blue background",
    "negative_prompt": "blurry",
    "steps": 20,
    "sampler": "euler_a",
    "schedule": "karras",
    "guidance_scale": 7.5,
    "seed": 2**63,
    "width": 512,
    "height": 768,
    "model": "sd15: fp16, pruned",
    "strength": 0.75,
    "clip_skip": 2,
    "version": "sdengine 1.2",
}


def test_the_layout() -> None:
    assert format_parameters(FULL) == (
        "a red circle, on a blue background\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, "
        'Seed: 9223372036854775808, Size: 512x768, Model: "sd15: fp16, pruned", '
        "Denoising strength: 0.75, Clip skip: 2, Version: sdengine 1.2"
    )


def test_round_trip() -> None:
    assert parse_parameters(format_parameters(FULL)) == FULL


def test_types_come_back() -> None:
    numbers = {
        "steps": np.int64(5),
        "guidance_scale": np.float32(7),
        "seed": 0,
        "clip_skip": None,
    }
    found = parse_parameters(format_parameters({"prompt": "p", **numbers}))
    assert (found["steps"], found["guidance_scale"], found["seed"]) == (5, 7.0, 0)
    assert [type(found[n]) for n in ("steps", "guidance_scale")] == [int, float]
    assert "clip_skip" not in found


def test_text_of_a1111() -> None:
    text = (
        "portrait, (detailed:1.2) <lora:ink:0.8>\nsecond line\n"
        "Negative prompt: bad, [worse]\nmore\n"
        "Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 7, Seed: 12, "
        "Size: 832x1216, Model hash: 31e35c80fc, Model: sd_xl_base_1.0, VAE hash: 63aeecb90f, "
        'Denoising strength: 0.5, Clip skip: 2, Lora hashes: "ink: 1a2b, b: 3c", '
        "Hires upscaler: 4x-UltraSharp, Version: v1.10.1"
    )
    assert parse_parameters(text) == {
        "prompt": "portrait, (detailed:1.2) <lora:ink:0.8>\nsecond line",
        "negative_prompt": "bad, [worse]\nmore",
        "steps": 28,
        "sampler": "dpm++2m_sde",
        "schedule": "exponential",
        "guidance_scale": 7.0,
        "seed": 12,
        "width": 832,
        "height": 1216,
        "model_hash": "31e35c80fc",
        "model": "sd_xl_base_1.0",
        "VAE hash": "63aeecb90f",
        "strength": 0.5,
        "clip_skip": 2,
        "Lora hashes": "ink: 1a2b, b: 3c",
        "hires_upscaler": "4x-UltraSharp",
        "version": "v1.10.1",
    }


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Euler a", {"sampler": "euler_a"}),
        ("DPM++ 2M Karras", {"sampler": "dpm++2m", "schedule": "karras"}),
        ("DPM2 a", {"sampler": "dpm2_a"}),
        ("Some New Sampler", {"sampler": "Some New Sampler"}),
        ("Unknown Karras", {"sampler": "Unknown Karras"}),
    ],
)
def test_sampler_names(label: str, expected: dict[str, str]) -> None:
    found = parse_parameters(f"p\nSteps: 1, Sampler: {label}, Seed: 2")
    assert {k: v for k, v in found.items() if k in ("sampler", "schedule")} == expected


def test_automatic_schedule_is_the_models_own() -> None:
    assert "schedule" not in parse_parameters("p\nSteps: 1, Schedule type: Automatic, Seed: 2")


@pytest.mark.parametrize("name", ["dpm++2m", "dpmpp_2m", "DPM++ 2M"])
def test_unknown_spellings_are_kept(name: str) -> None:
    text = format_parameters({"sampler": name, "steps": 1})
    assert ("DPM++ 2M" in text) == (name != "dpmpp_2m")
    assert parse_parameters(text)["sampler"] in ("dpm++2m", name)


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        ("", "", ""),
        ("just a prompt", "just a prompt", ""),
        ("a prompt: with, two: colons", "a prompt: with, two: colons", ""),
        ("a\nNegative prompt: b", "a", "b"),
        ("Negative prompt: b\nSteps: 1, Seed: 2, Size: 8x8", "", "b"),
        ("a\r\nNegative prompt: b\r\nSteps: 1, Seed: 2, Size: 8x8\r\n", "a", "b"),
        ("a\nSteps: 5", "a", ""),
    ],
)
def test_incomplete_texts(text: str, prompt: str, negative: str) -> None:
    found = parse_parameters(text)
    assert (found["prompt"], found["negative_prompt"]) == (prompt, negative)


def test_values_of_the_wrong_type_stay_text_under_their_label() -> None:
    found = parse_parameters("p\nSteps: many, Seed: 0x1F, Size: 512*512, CFG scale: high")
    assert found == {
        "prompt": "p",
        "negative_prompt": "",
        "Steps": "many",
        "Seed": "0x1F",
        "Size": "512*512",
        "CFG scale": "high",
    }


HOSTILE = [
    "Negative prompt: not the negative",
    "a\nNegative prompt: not the negative\nb",
    "a\nSteps: 1, Sampler: x, Seed: 2, Size: 3x4",
    "Steps: 1",
    'quotes " and \\" and \\',
    '"quoted"',
    "trailing newline\n",
    "\n\nleading",
    "  spaces  ",
    "\r\nwindows\r",
    "colon: comma, colon: comma",
    "\u2028\x85\x0b\x0c\x1c",
    "\0",
    "猫 😀",
    'sdengine prompt: "x"',
]


@pytest.mark.parametrize("prompt", HOSTILE)
@pytest.mark.parametrize("negative", ["", *HOSTILE])
def test_hostile_prompts_round_trip(prompt: str, negative: str) -> None:
    given_ = {"prompt": prompt, "negative_prompt": negative, "seed": 1, "version": "v"}
    assert parse_parameters(format_parameters(given_)) == given_


LABELS = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_ /-]{0,8}[A-Za-z0-9_/-]\Z").filter(
    lambda label: label not in RESERVED
)
RESERVED = {"width", "height", "version", "prompt", "Version"}
RESERVED |= {name for field in FIELDS for name in (field.name, field.label)}


@settings(deadline=None, derandomize=True)
@given(st.text(), st.text(), st.dictionaries(LABELS, st.text(), max_size=4))
def test_anything_round_trips(prompt: str, negative: str, others: dict[str, str]) -> None:
    given_ = {"prompt": prompt, "negative_prompt": negative, "version": "v", **others}
    assert parse_parameters(format_parameters(given_)) == given_


NUMBERS = st.floats(allow_nan=False)
WHOLE = st.integers(0, 2**64 - 1)
WORDS = st.from_regex(r"\A[m-z][a-z0-9_.]{0,12}\Z")
ITEMS = st.one_of(NUMBERS, WHOLE, WORDS)
RECORDS = st.dictionaries(
    WORDS, st.one_of(ITEMS, st.lists(ITEMS, min_size=2, max_size=3).map(tuple)), min_size=1
)
LISTS = st.lists(NUMBERS, min_size=2, max_size=4).map(tuple)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("steps", "seed", "variation_seed", "clip_skip", "order"), WHOLE),
    **dict.fromkeys(("batch_size", "batch_position", "reference_count"), WHOLE),
    **dict.fromkeys(("strength", "variation_strength", "eta", "s_churn", "s_tmin"), NUMBERS),
    **dict.fromkeys(("s_tmax", "s_noise", "shift", "denoising_start", "denoising_end"), NUMBERS),
    **dict.fromkeys(("guidance_rescale", "image_guidance_scale"), NUMBERS),
    **dict.fromkeys(("guidance_scale", "true_cfg_scale"), st.one_of(NUMBERS, LISTS)),
    **dict.fromkeys(("sigmas", "interval"), LISTS),
    "timesteps": st.lists(WHOLE, min_size=1, max_size=3).map(tuple),
    **dict.fromkeys(
        ("model", "model_hash", "vae", "arithmetic", "refiner", "task", "prompt_2"), st.text()
    ),
    **dict.fromkeys(("negative_prompt_2", "compat", "weighting", "resize_mode"), st.text()),
    **dict.fromkeys(("control_scales", "control_start", "control_end"), LISTS),
    **dict.fromkeys(("control_mode", "applied_loras"), st.text()),
    **dict.fromkeys(("brownian", "guess_mode", "resize_references"), st.booleans()),
    "norms": st.sampled_from(NORMS),
    **dict.fromkeys(("invert_mask", "only_masked", "differential"), st.booleans()),
    "ip_scale": NUMBERS,
    "mask_blur": NUMBERS,
    "mask_padding": WHOLE,
    "mask_fill": st.sampled_from(FILLS),
    "outpaint": st.one_of(NUMBERS, LISTS),
    "sampler": st.sampled_from(SAMPLERS),
    "schedule": st.sampled_from(SCHEDULES),
    "noise": st.sampled_from(["torch-cpu", "torch-cuda"]),
    "seamless": st.sampled_from(["x", "y", "xy"]),
    "cache": st.sampled_from(["fast", "balanced"]),
    **dict.fromkeys(("sizes", "negative_sizes", "projection", "threshold", "mimic"), RECORDS),
    **dict.fromkeys(("skip_layers", "perturbed_attention"), RECORDS),
    **dict.fromkeys(("normalized_attention", "zero_star", "tiled_diffusion"), RECORDS),
    **dict.fromkeys(("hires_scale", "hires_strength", "hires_guidance_scale"), NUMBERS),
    "hires_steps": WHOLE,
    "hires_upscaler": st.sampled_from([*LATENT, "lanczos", "nearest"]),
    "hires_sampler": st.sampled_from(SAMPLERS),
    "hires_schedule": st.sampled_from(SCHEDULES),
    **dict.fromkeys(("hires_prompt", "hires_negative_prompt"), st.text()),
}


def test_every_field_has_values_below() -> None:
    assert set(VALUES) | {"size", "hires_size"} == {field.name for field in FIELDS}


@settings(deadline=None, derandomize=True)
@given(st.fixed_dictionaries({}, optional=VALUES), st.text())
def test_every_known_field_round_trips(fields: dict[str, Any], prompt: str) -> None:
    # A1111's one strength is that of the second pass where there is no given picture.
    assume(not {"strength", "hires_scale"} <= fields.keys() or "task" in fields)
    given_ = {"prompt": prompt, "negative_prompt": "", "version": "v", **fields}
    assert parse_parameters(format_parameters(given_)) == given_


@dataclass(frozen=True)
class Kind:
    layers: tuple[str, ...] = ("mid_block", "up_blocks.1")
    scale: float = 2.0


def test_values_are_readable() -> None:
    text = format_parameters(
        {
            "steps": 1,
            "guidance_scale": [7.0, 3.5],
            "s_tmax": math.inf,
            "brownian": False,
            "skip_layers": Kind(),
            "a tuple": (1.0, 2.5),
            "a dict": {"x": 1.0},
            "a kind": Kind(),
            "eta": None,
            "version": "v",
        }
    )
    assert text == (
        "Steps: 1, CFG scale: 7 3.5, Sigma tmax: inf, Brownian noise: no, "
        "Skip layers: layers=mid_block/up_blocks.1 scale=2, a tuple: 1 2.5, a dict: x=1, "
        "a kind: layers=mid_block/up_blocks.1 scale=2, Version: v"
    )


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("Sampler: PLMS", {"sampler": "ipndm"}),
        ("Sampler: DDIM CFG++", {"sampler": "euler_cfg_pp"}),
        ("Sampler: DPM++ 2M SDE Heun Exponential", {"sampler": "dpm++2m_sde_heun"}),
        ("Schedule type: Normal", {"schedule": "discrete"}),
        ("RNG: GPU", {"noise": "torch-cuda"}),
        ("Tiling: True", {"seamless": "xy"}),
        ("Brownian noise: maybe", {"Brownian noise": "maybe"}),
        ("Skip layers: mid_block", {"Skip layers": "mid_block"}),
        ("CFG interval: ", {"CFG interval": ""}),
    ],
)
def test_labels_that_are_read(field: str, expected: dict[str, Any]) -> None:
    found = parse_parameters(f"p\nSteps: 1, {field}, Seed: 2, Size: 8x8")
    assert {k: found.get(k) for k in expected} == expected


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([*'ab ":,\\\n', "Steps: 1, ", ': "']) | st.characters()).map("".join)
)
def test_parsing_never_raises(text: str) -> None:
    found = parse_parameters(text)
    assert isinstance(found["prompt"], str)


@pytest.mark.parametrize("key", ["a", "", "a:b", "a,b", "a\nb", " ab", "ab ", "?ab"])
def test_keys_that_cannot_be_written(key: str) -> None:
    with pytest.raises(ParameterError, match="cannot be written"):
        format_parameters({key: 1})


def test_version_is_always_written() -> None:
    assert parse_parameters(format_parameters({}))["version"].startswith("sdengine")


@pytest.mark.parametrize("unit", ["a", "aa: ", 'aa: "', 'aa:"\\",', "aa:b,", " ", ":", "aa "])
def test_time_is_linear(unit: str) -> None:
    started = time.perf_counter()
    parse_parameters(unit * 100_000)
    assert time.perf_counter() - started < 3


# ------------------------------ files
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("prompt", ["plain", "猫 😀 é", 'a\nNegative prompt: "x"', "\ud800 half"])
def test_files_round_trip(tmp_path: Path, suffix: str, prompt: str) -> None:
    parameters = {**FULL, "prompt": prompt}
    path = save(Image.new("RGB", (8, 8)), tmp_path / f"a.{suffix}", format_parameters(parameters))
    expected = prompt.replace("\ud800", "?")  # half a character cannot be stored
    assert read_parameters(path) == {**parameters, "prompt": expected}


def test_png_chunk_types(tmp_path: Path) -> None:
    for prompt, chunk in (("plain é", b"tEXtparameters\0"), ("猫", b"iTXtparameters\0")):
        path = save(Image.new("RGB", (8, 8)), tmp_path / "a.png", prompt)
        assert chunk in path.read_bytes()


def test_exif_is_as_a1111_writes_it(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", "Ab猫")
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    text = "Ab猫".encode("utf-16-be")
    assert comment == b"UNICODE\0" + text
    entry = struct.pack(">HHI", 0x9286, 7, 8 + len(text))  # UserComment, UNDEFINED, its length
    assert entry in path.read_bytes()


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "héllo".encode("utf-16-be"), "héllo"),
        (b"UNICODE\0" + "héllo".encode("utf-16-le"), "héllo"),
        (b"UNICODE\0" + "héllo".encode("utf-16"), "héllo"),
        (b"ASCII\0\0\0hello", "hello"),
        (b"\0" * 8 + b"hello\0\0", "hello"),
        (b"no charset at all", "no charset at all"),
        (b"UNICODE\0", None),
        (b"UNICODE\0\x00", "\ufffd"),
    ],
)
def test_user_comments_of_other_programs(tmp_path: Path, comment: bytes, text: str | None) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert read_parameters_text(tmp_path / "a.jpg") == text


def test_compressed_text_after_the_pixels(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "p\nSteps: 1, Seed: 2, Size: 8x8", zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_parameters(tmp_path / "a.png")["seed"] == 2


def test_files_without_parameters(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}")
        assert read_parameters(tmp_path / f"a.{suffix}") == {}


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no such file"):
        read_parameters(tmp_path / "absent.png")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(FormatError, match="not a readable picture"):
        read_parameters(tmp_path / "a.png")
