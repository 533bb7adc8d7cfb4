"""``sdengine generate --from``: pictures made again."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import sdengine
from sdengine import Lora
from sdengine.cli import main
from sdengine.images import save

from .conftest import Library, Run


def picture(name: str, text: str) -> str:
    save(Image.new("RGB", (8, 8)), name, text)
    return name


LAST_LINE = "Steps: 9, Sampler: Euler a, CFG scale: 3, Seed: 4, Size: 64x128"


def test_a_picture_is_made_again(run: Run, library: Library) -> None:
    source = picture("a.png", f"a cat\nNegative prompt: ugly\n{LAST_LINE}, Eta: 0.5, Model: x")
    assert run("generate", "--from", source).exit_code == 0
    options = {"negative_prompt": "ugly", "steps": 9, "sampler": "euler_a", "guidance_scale": 3.0}
    options |= {"seed": 4, "width": 64, "height": 128, "eta": 0.5}
    assert library.calls == [("generate", ("a cat",), options)]
    library.calls.clear()
    assert run("generate", "a dog", "--from", source, "-s", 5, "--ar", "1:1").exit_code == 0
    options = {k: v for k, v in options.items() if k not in ("width", "height")}
    assert library.calls == [
        ("generate", ("a dog",), {**options, "seed": 5, "aspect_ratio": "1:1"})
    ]


def test_what_is_given_overrules_what_belongs_to_it(run: Run, library: Library) -> None:
    source = picture("a.png", f"a cat\n{LAST_LINE}, Sigmas: 3 2 0, Denoising strength: 0.5")
    run("generate", "--from", source, "--steps", 3)
    assert library.calls[0][2].keys().isdisjoint({"sigmas", "strength"})
    run("generate", "--from", source, "-i", "in.png")
    assert library.calls[1][2].items() >= {"sigmas": (3.0, 2.0, 0.0), "strength": 0.5}.items()


def test_how_a_mask_was_used_comes_back_with_a_mask(run: Run, library: Library) -> None:
    source = picture("a.png", f"a cat\n{LAST_LINE}, Mask blur: 4, Inpaint area: Only masked")
    run("generate", "--from", source)
    assert library.calls[0][2].keys().isdisjoint({"mask_blur", "only_masked"})
    run("generate", "--from", source, "-i", "in.png", "--mask", "m.png")
    assert library.calls[1][2].items() >= {"mask_blur": 4.0, "only_masked": True}.items()
    source = picture("b.png", f"a cat\n{LAST_LINE}, Outpaint: 8 0 8 0, Mask blur: 4")
    run("generate", "--from", source, "-i", "in.png")
    assert library.calls[2][2].items() >= {"mask_blur": 4.0, "outpaint": (8.0, 0, 8.0, 0)}.items()
    run("generate", "--from", source, "-i", "in.png", "--mask", "m.png")
    assert "outpaint" not in library.calls[3][2]
    run("generate", "--from", source, "-i", "in.png", "--outpaint", "4:3")
    assert library.calls[4][2]["outpaint"] == "4:3"
    assert library.calls[4][2].keys().isdisjoint({"width", "height"})


def test_an_enlarged_picture_of_a1111(run: Run, library: Library) -> None:
    fields = "Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent (bicubic)"
    source = picture("a.png", f"a cat\n{LAST_LINE}, {fields}")
    run("generate", "--from", source)
    hires = {"hires_scale": 2.0, "hires_upscaler": "latent-bicubic", "hires_strength": 0.5}
    assert library.calls[0][2].items() >= hires.items()
    assert "strength" not in library.calls[0][2]
    run("generate", "--from", source, "--hires-width", 256)
    assert "hires_scale" not in library.calls[1][2]
    assert library.calls[1][2]["hires_width"] == 256


def test_tiles_of_the_denoiser(run: Run, library: Library) -> None:
    for text, expected in (
        ("on", True),
        ("96", 96),
        ("size=96 overlap=48", {"size": 96, "overlap": 48}),
    ):
        run("generate", "a", "--tiled-diffusion", text)
        assert library.calls.pop()[2] == {"tiled_diffusion": expected}
    assert "is not on, SIZE" in run("generate", "a", "--tiled-diffusion", "huge").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"p\n{LAST_LINE}, Task: outpainting", "from a given image: repeat it with --image"),
        (f"p\n{LAST_LINE}, Task: inpainting", "from a given image: repeat it with --image"),
        (
            f"p\n{LAST_LINE}, Task: editing by reference",
            "from a given reference: repeat it with --reference",
        ),
        (
            f"p\n{LAST_LINE}, Task: control",
            "from a given control image: repeat it with --control-image",
        ),
        (f"p\n{LAST_LINE}, Refiner: fine", "made with the refiner fine: give it with --refiner"),
        (
            f"p\n{LAST_LINE}, Hires upscale: 2, Hires upscaler: 4x-Sharp.pth",
            "made with the upscaler 4x-Sharp.pth: give it with --hires-upscaler",
        ),
        (f"p\n{LAST_LINE}, Control scale: 1 0.5", "repeat it with --controlnet and --control-im"),
        (f"p\n{LAST_LINE}, IP-Adapter scale: 1", "an IP-Adapter: repeat it with --ip-adapter and"),
        (f'p\n{LAST_LINE}, Applied LoRAs: "ink:1"', "LoRAs (ink:1): give --model and --lora-dir"),
    ],
)
def test_pictures_that_need_more(run: Run, library: Library, text: str, words: str) -> None:
    result = run("generate", "--from", picture("a.png", text))
    assert (result.exit_code, library.calls) == (2, [])
    assert words in " ".join(result.stderr.split())


def test_the_loras_of_a_picture_are_found(run: Run, library: Library) -> None:
    Path("loras/more").mkdir(parents=True)
    for name in ("ink.safetensors", "more/wide.v2.safetensors"):
        Path("loras", name).write_text("")
    applied = "ink:0.8:0.3, wide.v2:0.5/0.4 [0.25-1], other:0.123456789"
    source = picture("a.png", f'p\n{LAST_LINE}, Applied LoRAs: "{applied}"')
    given = ("generate", "--from", source, "-m", "m", "--lora-dir", "loras")
    result = run(*given)
    assert (result.exit_code, library.calls) == (2, [])
    assert "LoRAs that are not found in loras: other. Give" in " ".join(result.stderr.split())
    result = run(*given, "--lora", "else/Other.pt", "--lora", "new.pt:2")
    assert result.exit_code == 0, result.output
    assert library.calls[0][2]["loras"] == [
        Lora(Path("loras/ink.safetensors"), 0.8, 0.3),
        Lora(Path("loras/more/wide.v2.safetensors"), [0.5, 0.4], start=0.25),
        Lora("else/Other.pt", 0.123456789),
        Lora("new.pt", 2.0),
    ]
    assert "loras" not in library.calls[1][2]


def test_a_picture_without_parameters(run: Run) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    assert "carries no generation parameters" in run("generate", "--from", "a.png").stderr


def test_end_to_end_with_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "a red circle", "--steps", "3", "--guidance", "perturbed_attention"]
    arguments += ["--variation-seed", "1", "--variation-strength", "0.2", "--preview-dir", "steps"]
    for run_arguments in (arguments, ["generate", "--from", "out.png", "-o", "again.png"]):
        result = CliRunner().invoke(main, run_arguments)
        assert result.exit_code == 0, result.output
    with Image.open("out.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes()
    assert len(os.listdir("steps")) == 3


@pytest.mark.filterwarnings("always::sdengine.UnwiseWarning")
def test_warnings_are_one_line(run: Run, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: Any, **__: Any) -> list[Any]:
        warnings.warn("use lcm with care", sdengine.UnwiseWarning, stacklevel=1)
        return []

    monkeypatch.setattr(sdengine, "devices", warn)
    assert run("devices").stderr == "warning: use lcm with care\n"
