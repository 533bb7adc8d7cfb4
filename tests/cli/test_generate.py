"""``sdengine generate``: what it passes on, prints, writes and returns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import sdengine
from sdengine.cli.preview import numbered
from sdengine.cli.settings import NOT_ON_A_COMMAND_LINE, SETTINGS, Setting
from sdengine.errors import (
    Cancelled,
    FormatError,
    OutOfMemoryError,
    OutputError,
    ParameterError,
    UnsupportedModelError,
)
from sdengine.guidance import AdaptiveProjection, Guidance, PerturbedAttention
from sdengine.metadata import read_parameters

from .conftest import Library, Run


def test_generate_with_the_demo_model(run: Run, library: Library) -> None:
    result = run("generate", "a red circle")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out.png\n", "")
    assert library.calls == [("generate", ("a red circle",), {})]
    assert read_parameters("out.png")["prompt"] == "a red circle"


def test_model_options_reach_the_library(run: Run, library: Library) -> None:
    result = run(
        *("generate", "a cat", "-m", "m.gguf", "--vae", "v.safetensors"),
        *("--text-encoder", "text_encoder=a=b", "--text-encoder", "text_encoder_2=c"),
        *("--tokenizer", "tok", "--device", "cpu", "--threads", 3),
        *("--family", "sdxl", "--prediction", "v_prediction", "--weight-type", "q8_0"),
        *("-n", "blurry", "--taesd", "tiny.gguf", "--prompt-cache", "kept"),
        *("--arithmetic", "fast"),
    )
    assert result.exit_code == 0, result.output
    load, generate = library.calls
    options = {"vae": "v.safetensors", "tokenizer": "tok", "device": "cpu", "threads": 3}
    options |= {"family": "sdxl", "prediction": "v_prediction", "weight_type": "q8_0"}
    options["text_encoders"] = {"text_encoder": "a=b", "text_encoder_2": "c"}
    options |= {"preview_vae": "tiny.gguf", "prompt_cache": "kept", "arithmetic": "fast"}
    assert load == ("load", ("m.gguf",), options)
    assert generate[1:] == (("a cat",), {"negative_prompt": "blurry"})


def test_several_files_for_a_component(run: Run, library: Library) -> None:
    files = ("--vae", "enc", "--vae", "dec", "--text-encoder", "l", "--text-encoder", "g")
    assert run("generate", "a", "-m", "m", *files).exit_code == 0
    assert library.calls[0][2] == {"vae": ["enc", "dec"], "text_encoders": ["l", "g"]}
    assert run("convert", "a", "b.gguf", *files).exit_code == 0
    assert (
        library.calls[2][2].items() >= {"vae": ["enc", "dec"], "text_encoders": ["l", "g"]}.items()
    )


VALUES: dict[str, tuple[str, Any]] = {
    "prompt_2": ("a dog", "a dog"),
    "negative_prompt_2": ("ugly", "ugly"),
    "weighting": ("compel", "compel"),
    "clip_skip": ("2", 2),
    "width": ("64", 64),
    "height": ("128", 128),
    "aspect_ratio": ("16:9", "16:9"),
    "batch_size": ("2", 2),
    "seamless": ("xy", "xy"),
    "cache": ("fast", "fast"),
    "tile": ("0", 0),
    "tiled_diffusion": ("size=64 overlap=16", {"size": 64, "overlap": 16}),
    "sizes": ("crop_top=8", {"crop_top": 8.0}),
    "negative_sizes": ("crop_left=0", {"crop_left": 0.0}),
    "steps": ("9", 9),
    "sampler": ("euler_a", "euler_a"),
    "schedule": ("karras", "karras"),
    "sigmas": ("14.6,2,0", [14.6, 2.0, 0.0]),
    "timesteps": ("999,500", [999, 500]),
    "eta": ("0.5", 0.5),
    "shift": ("1.75", 1.75),
    "s_noise": ("1.01", 1.01),
    "s_churn": ("2", 2.0),
    "s_tmin": ("0.1", 0.1),
    "s_tmax": ("9", 9.0),
    "order": ("3", 3),
    "denoising_start": ("0.2", 0.2),
    "denoising_end": ("0.8", 0.8),
    "compat": ("a1111", "a1111"),
    "guidance_scale": ("6.5", 6.5),
    "true_cfg_scale": ("4,2,1", [4.0, 2.0, 1.0]),
    "image_guidance_scale": ("1.5", 1.5),
    "guidance_rescale": ("0.7", 0.7),
    "guidance": (
        "perturbed_attention scale=2 layers=mid_block/up_blocks.1",
        Guidance(perturbed_attention=PerturbedAttention(("mid_block", "up_blocks.1"), 2)),
    ),
    "seed": ("0", 0),
    "noise": ("torch-cuda", "torch-cuda"),
    "variation_seed": ("7", 7),
    "variation_strength": ("0.25", 0.25),
    "image": ("in.png", "in.png"),
    "mask": ("mask.png", "mask.png"),
    "mask_blur": ("4", 4.0),
    "mask_padding": ("16", 16),
    "mask_fill": ("blur", "blur"),
    "outpaint": ("64,0,64,0", "64,0,64,0"),
    "depth": ("depth.png", "depth.png"),
    "references": ("face.png", ["face.png"]),
    "control_images": ("edges.png", ["edges.png"]),
    "control_scales": ("0.5,1", [0.5, 1.0]),
    "control_start": ("0.1", 0.1),
    "control_end": ("0.8", 0.8),
    "control_mode": ("prompt", "prompt"),
    "ip_images": ("face.png", ["face.png"]),
    "ip_scale": ("0.6", 0.6),
    "strength": ("0.6", 0.6),
    "resize_mode": ("pad", "pad"),
    "hires_scale": ("1.5", 1.5),
    "hires_width": ("1024", 1024),
    "hires_height": ("768", 768),
    "hires_upscaler": ("latent-bicubic", "latent-bicubic"),
    "hires_strength": ("0.5", 0.5),
    "hires_steps": ("12", 12),
    "hires_sampler": ("euler_a", "euler_a"),
    "hires_schedule": ("karras", "karras"),
    "hires_guidance_scale": ("4.5", 4.5),
    "hires_prompt": ("sharp", "sharp"),
    "hires_negative_prompt": ("soft", "soft"),
}
SWITCHES = {
    "brownian": "--brownian",
    "guess_mode": "--guess-mode",
    "resize_references": "--resize-references",
    "invert_mask": "--invert-mask",
    "only_masked": "--only-masked",
    "differential": "--differential",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_every_option_reaches_the_library(run: Run, library: Library, setting: Setting) -> None:
    for flag in setting.flags:
        library.calls.clear()
        if setting.name in SWITCHES:
            (given, expected), flags = ("", True), [SWITCHES[setting.name]]
        else:
            (given, expected), flags = VALUES[setting.name], [flag, VALUES[setting.name][0]]
        result = run("generate", "a", *flags)
        assert result.exit_code == 0, (given, result.output)
        assert library.calls == [("generate", ("a",), {setting.name: expected})]


def test_the_command_line_has_every_option_of_the_library() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(set(names)) == len(names)
    assert set(names) | NOT_ON_A_COMMAND_LINE == set(sdengine.GenerateOptions.__annotations__)
    assert not set(names) & NOT_ON_A_COMMAND_LINE


def test_options_that_repeat(run: Run, library: Library) -> None:
    run("generate", "a", "--size-conditioning", "crop_top=8", "--size-conditioning", "crop_left=9")
    assert library.calls[0][2] == {"sizes": {"crop_top": 8.0, "crop_left": 9.0}}
    kinds = ("--guidance", "interval=0.2/0.8", "--guidance", "projection")
    run("generate", "a", *kinds, "--guidance", "norms=free", "--no-brownian")
    expected = Guidance(interval=(0.2, 0.8), projection=AdaptiveProjection(), norms="free")
    assert library.calls[1][2] == {"guidance": expected, "brownian": False}


def test_a_refiner_shares_what_is_not_the_models_own(run: Run, library: Library) -> None:
    options = ("-m", "base", "--vae", "v", "--tokenizer", "tok", "--threads", 2)
    assert run("generate", "a", *options, "--refiner", "fine").exit_code == 0
    base, refiner, generate = library.calls
    assert base[2] == {"vae": "v", "tokenizer": "tok", "threads": 2}
    assert refiner == ("load", ("fine",), {"tokenizer": "tok", "threads": 2})
    assert generate[2]["refiner"].path == "fine"


@pytest.mark.parametrize("name", ["--cfg-scale", "--guidance-scale"])
def test_both_names_of_guidance(run: Run, library: Library, name: str) -> None:
    assert run("generate", "a", name, "3").exit_code == 0
    assert library.calls[0][2] == {"guidance_scale": 3.0}


def test_a_batch_is_numbered_and_every_picture_knows_its_seed(run: Run) -> None:
    result = run("generate", "a", "-b", "3", "-s", "5", "-o", "my.pic.png")
    assert result.stdout.split() == ["my.pic.png", "my.pic-2.png", "my.pic-3.png"]
    assert [read_parameters(name)["seed"] for name in result.stdout.split()] == [5, 6, 7]


def test_numbering() -> None:
    assert numbered(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert numbered(Path("a/b.png"), 3) == [Path(f"a/b{n}.png") for n in ("", "-2", "-3")]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("generate", "a", "-o", "a.gif"), 2, "must end in .png"),
        (("generate", "a", "-o", "absent/a.png"), 1, "there is no folder absent"),
        (("generate", "a", "--threads", "3"), 2, "--threads needs --model"),
        (("generate", "a", "--text-encoder", "x=y"), 2, "--text-encoder needs --model"),
        (
            ("generate", "a", "-m", "m", "--text-encoder", "x", "--text-encoder", "y=z"),
            *(2, "takes NAME=PATH each time, or PATH each time"),
        ),
        (("generate", "a", "--refiner", "x"), 2, "--refiner needs --model"),
        (("generate", "a", "--sigmas", "1;2"), 2, "'1;2' is not a list of numbers"),
        (("generate", "a", "--timesteps", "1.5"), 2, "'1.5' is not a list of whole numbers"),
        (("generate", "a", "--size-conditioning", "crop_top"), 2, "'crop_top' is not KEY=NUMBER"),
        (("generate", "a", "--guidance", "projection eta"), 2, "is not KIND, or KIND NAME=VALUE"),
        (
            ("generate", "a", "--guidance", "magic"),
            2,
            "no guidance 'magic'; choose one of interval",
        ),
        (("generate", "a", "--seamless", "z"), 2, "'x', 'y', 'xy'"),
        (("generate", "--from", "absent.png"), 2, "there is no such file"),
        (("generate", "a", "--steps", "many"), 2, "not a valid integer"),
        (("generate", "a", "--quality", "0"), 2, "1<=x<=100"),
        (("generate",), 2, "Missing argument"),
        (("generate", "a", "--stpes", "3"), 2, "--steps"),
        (("convert", "a", "b", "--rule", "vae"), 2, "--rule takes NAME=VALUE"),
        (("bench", "--repeat", "0"), 2, "1<=x<=1000"),
        (("paint",), 2, "No such command"),
        (("generate", "a", "--animate", "a.jpg"), 2, "must end in .gif"),
        (("generate", "a", "--animate", "absent/a.gif"), 1, "there is no folder absent"),
        (("generate", "a", "--grid", "a.gif"), 2, "must end in .png"),
        (("generate", "a", "--preview-method", "x"), 2, "choose one of linear, tiny, full"),
        (("generate", "a", "--preview-every", "0"), 2, "1<=x<=1000"),
        (("generate", "a", "--taesd", "x"), 2, "--taesd needs --model"),
        (("generate", "a", "--prompt-cache", "x"), 2, "--prompt-cache needs --model"),
        (("generate", "a", "--y", "steps=1"), 2, "--y needs --x"),
        (("generate", "a", "--x", "steps"), 2, "is not NAME=VALUE,VALUE"),
        (("generate", "a", "--x", "steps=1,many"), 2, "'many' is not a valid integer"),
        (
            ("generate", "a", "--x", "steps=1", "--grid", "a.png"),
            *(2, "leave --grid, --animate and --refiner out"),
        ),
    ],
)
def test_mistakes_are_told_before_any_work(
    run: Run, library: Library, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert library.calls == []
    assert os.listdir() == []


@pytest.mark.parametrize("command", [("generate", "a"), ("bench",), ("devices",), ("inspect", "m")])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ParameterError("steps must be 1 to 1000, not 0"), 2),
        (FormatError("m.gguf: damaged\nsecond line"), 1),
        (UnsupportedModelError("no family"), 1),
        (OutOfMemoryError("asked for 3 GB"), 1),
        (OutputError("disk full"), 1),
    ],
)
def test_errors_are_one_line(
    run: Run, library: Library, command: tuple[str, ...], error: Exception, code: int
) -> None:
    library.error = error
    result = run(*command)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == f"error: {' '.join(str(error).splitlines())}\n"
    assert os.listdir() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled("stopped")])
def test_interruption(run: Run, library: Library, error: BaseException) -> None:
    library.error = error
    result = run("generate", "a")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert os.listdir() == []


def test_other_exceptions_are_not_swallowed(run: Run, library: Library) -> None:
    library.error = ZeroDivisionError("a bug")
    assert isinstance(run("generate", "a").exception, ZeroDivisionError)


def test_progress_is_shown_on_a_terminal_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("generate", "a").stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    assert "generating" in run("generate", "a").stderr
