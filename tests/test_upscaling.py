"""Upscalers as users meet them: pictures in and out, tiles, any scale, the command, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

import sdengine
from sdengine.cli import main
from sdengine.errors import (
    Cancelled,
    FormatError,
    NumericError,
    ParameterError,
    SDEngineError,
    UnsupportedModelError,
    WeightsError,
)
from tests.models import tiny_sd1_folder
from tests.parity.reference_upscalers import Rrdb, Srvgg
from tests.upscaler_models import make, write


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width * height)
    channels = len(mode)
    values = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def enlarging(scale: int = 4) -> torch.nn.Module:
    """A compact upscaler that adds nothing to the picture enlarged by nearest neighbour."""
    model = Srvgg(8, 1, scale)
    with torch.no_grad():
        model.body[-1].weight.zero_()
        model.body[-1].bias.zero_()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upscalers")
    for name in ("rrdb-x4", "rrdb-x2", "srvgg-x2", "swinir-lightweight-x4", "swinir-grey-x1"):
        write(path / f"{name}.safetensors", make(name))
    write(path / "nearest.safetensors", enlarging())
    return path


def nearest(image: Image.Image, scale: int = 4) -> np.ndarray:
    return np.asarray(image).repeat(scale, 0).repeat(scale, 1)


# ------------------------------ pictures
def test_colour_and_transparency(folder: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "nearest.safetensors")
    assert upscaler.scale == 4
    for mode in ("RGB", "RGBA"):
        image = picture(9, 7, mode)
        result = upscaler.upscale(image)
        assert result.mode == mode
        assert np.array_equal(np.asarray(result), nearest(image))


def test_transparency_of_a_real_network(folder: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "rrdb-x4.safetensors")
    image = picture(9, 7, "RGBA")
    result = upscaler.upscale(image)
    assert np.array_equal(result.convert("RGB"), upscaler.upscale(image.convert("RGB")))
    assert np.array_equal(
        result.getchannel("A"), upscaler.upscale(image.getchannel("A")).convert("L")
    )


def test_every_kind_of_input(folder: Path, tmp_path: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "nearest.safetensors")
    image = picture(6, 5)
    image.save(tmp_path / "in.png")
    expected = nearest(image)
    array = np.asarray(image)
    for source in (tmp_path / "in.png", str(tmp_path / "in.png"), array, array / 255.0):
        assert np.array_equal(np.asarray(upscaler.upscale(source)), expected)
    grey = picture(6, 5, "L")
    assert np.array_equal(np.asarray(upscaler.upscale(grey).convert("L")), nearest(grey))


def test_several_sizes_at_once(folder: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "rrdb-x2.safetensors")
    images = [picture(9, 7), picture(4, 12), picture(1, 1)]
    found = upscaler.upscale(images)
    assert [each.size for each in found] == [(18, 14), (8, 24), (2, 2)]
    assert np.array_equal(found[1], upscaler.upscale(images[1]))


def test_grey_network(folder: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "swinir-grey-x1.safetensors")
    result = np.asarray(upscaler.upscale(picture(10, 9)))
    assert result.shape == (9, 10, 3)
    assert np.array_equal(result[..., 0], result[..., 2])


@pytest.mark.parametrize(
    ("scale", "size"), [(1, (9, 7)), (2.5, (22, 18)), (4, (36, 28)), (6, (54, 42)), (0.01, (1, 1))]
)
def test_any_scale(folder: Path, scale: float, size: tuple[int, int]) -> None:
    upscaler = sdengine.load_upscaler(folder / "nearest.safetensors")
    image = picture(9, 7)
    result = upscaler.upscale(image, scale=scale)
    assert result.size == size
    own = upscaler.upscale(image)
    assert np.array_equal(result, own.resize(size, Image.Resampling.LANCZOS))


# ------------------------------ tiles
@pytest.mark.parametrize("name", ["rrdb-x4", "rrdb-x2", "srvgg-x2"])
def test_tiles_show_no_seams(folder: Path, name: str) -> None:
    upscaler = sdengine.load_upscaler(folder / f"{name}.safetensors")
    image = picture(75, 69)
    whole = np.asarray(upscaler.upscale(image, tile=0), np.int32)
    tiled = np.asarray(upscaler.upscale(image, tile=48, overlap=24), np.int32)
    assert np.abs(whole - tiled).max() <= 1


def test_tiles_of_windows(folder: Path) -> None:
    # Attention sees less at a tile's edge: not equal, but without a seam. Odd sizes, tile and overlap.
    upscaler = sdengine.load_upscaler(folder / "swinir-lightweight-x4.safetensors")
    x, y = np.meshgrid(np.linspace(0, 1, 70), np.linspace(0, 1, 61))
    image = np.stack([x, y, x * y], 2)
    whole = np.asarray(upscaler.upscale(image, tile=0), np.float32)
    tiled = np.asarray(upscaler.upscale(image, tile=35, overlap=11), np.float32)
    assert whole.shape == tiled.shape == (244, 280, 3)
    assert np.abs(whole - tiled).max() <= 8


def test_memory_follows_the_tile(folder: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "rrdb-x4.safetensors")

    def taken(width: int, height: int) -> int:
        upscaler.network.release()
        upscaler.upscale(picture(width, height), tile=32)
        return upscaler.network.activation_bytes

    assert taken(40, 40) == taken(200, 90)


def test_short_memory_means_tiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = sdengine.load_upscaler(folder / "rrdb-x4.safetensors")
    need = upscaler.network.planned_bytes({"image": [1, 3, 128, 128]}, {})
    monkeypatch.setattr("sdengine.upscalers.upscaler.available_memory", lambda: 2 * need)
    upscaler.upscale(picture(200, 140))
    assert 0 < upscaler.network.activation_bytes <= need


# ------------------------------ the command
def test_command(folder: Path, tmp_path: Path) -> None:
    image = picture(12, 10)
    image.save(tmp_path / "in.png")
    model = str(folder / "nearest.safetensors")
    source, target = str(tmp_path / "in.png"), tmp_path / "out.png"
    arguments = ["upscale", source, "-o", str(target), "--model", model]
    result = CliRunner().invoke(main, [*arguments, "--scale", "3", "--tile", "16"])
    assert result.exit_code == 0, result.output
    assert result.output == f"{target}  36 x 30\n"
    with Image.open(target) as written:
        assert written.size == (36, 30)
    result = CliRunner().invoke(main, [*arguments, "--scale", "0"])
    assert result.exit_code == 2
    assert "scale must be above 0" in result.output
    result = CliRunner().invoke(main, [*arguments[:2], "-o", "out.gif", "--model", model])
    assert result.exit_code == 2


def test_command_keeps_parameters(folder: Path, tmp_path: Path) -> None:
    from sdengine.images import save
    from sdengine.metadata import read_parameters_text

    save(picture(8, 8), tmp_path / "in.png", "a fox\nSteps: 20, Seed: 1")
    model = str(folder / "nearest.safetensors")
    arguments = [str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "-m", model]
    assert CliRunner().invoke(main, ["upscale", *arguments]).exit_code == 0
    assert read_parameters_text(tmp_path / "out.png") == "a fox\nSteps: 20, Seed: 1"


# ------------------------------ what is refused
@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0},
        {"scale": -2},
        {"scale": float("nan")},
        {"scale": 100},
        {"scale": "2"},
        {"tile": 8},
        {"tile": 10**6},
        {"tile": 32.0},
        {"tile": 32, "overlap": 17},
        {"overlap": -1},
    ],
    ids=str,
)
def test_arguments_out_of_range(folder: Path, options: dict[str, object]) -> None:
    upscaler = sdengine.load_upscaler(folder / "nearest.safetensors")
    with pytest.raises(ParameterError, match=f"^{next(reversed(options))} must be"):
        upscaler.upscale(picture(8, 8), **options)  # type: ignore[call-overload]


def test_pictures_that_are_none(folder: Path, tmp_path: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "nearest.safetensors")
    with pytest.raises(ParameterError, match="0x5 pixels"):
        upscaler.upscale(Image.new("RGB", (0, 5)))
    with pytest.raises(ParameterError, match="shape"):
        upscaler.upscale(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(ParameterError, match="no such file"):
        upscaler.upscale(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FormatError, match="not a readable picture"):
        upscaler.upscale(tmp_path / "text.png")


def test_models_are_no_upscalers(tmp_path: Path, folder: Path) -> None:
    model = tiny_sd1_folder(tmp_path / "model")
    with pytest.raises(
        UnsupportedModelError, match=r"Stable Diffusion 1.*load it with sdengine\.load$"
    ):
        sdengine.load_upscaler(model)
    save_file({"a.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedModelError, match="no upscaler that sdengine runs"):
        sdengine.load_upscaler(tmp_path / "other.safetensors")
    for name in ("rrdb-x4", "swinir-lightweight-x4", "srvgg-x2"):
        with pytest.raises(UnsupportedModelError, match=r"an upscaler .*sdengine\.load_upscaler"):
            sdengine.load(folder / f"{name}.safetensors")


def altered(source: Path, target: Path, **changes: torch.Tensor | None) -> Path:
    weights = load_file(source)
    for name, value in changes.items():
        if value is None:
            del weights[name.replace("__", ".")]
        else:
            weights[name.replace("__", ".")] = value
    save_file(weights, target)
    return target


def test_damaged_files(folder: Path, tmp_path: Path) -> None:
    source, target = folder / "rrdb-x4.safetensors", tmp_path / "bad.safetensors"
    with pytest.raises(WeightsError, match=r"'body.1.rdb2.conv3.weight' .* is missing"):
        sdengine.load_upscaler(altered(source, target, body__1__rdb2__conv3__weight=None))
    with pytest.raises(WeightsError, match="conv_hr.weight"):
        sdengine.load_upscaler(altered(source, target, conv_hr__weight=torch.zeros(3, 3, 3, 3)))
    with pytest.raises(WeightsError, match="square number"):
        sdengine.load_upscaler(altered(source, target, conv_first__weight=torch.zeros(12, 6, 3, 3)))
    with pytest.raises(UnsupportedModelError, match="1 tensors that such a network does not have"):
        sdengine.load_upscaler(altered(source, target, attention__weight=torch.zeros(3)))
    nan = altered(source, target, conv_body__bias=torch.full((12,), float("nan")))
    with pytest.raises((NumericError, WeightsError), match="conv_body.bias"):
        sdengine.load_upscaler(nan).upscale(picture(8, 8))
    whole = source.read_bytes()
    for size in (0, 8, 100, len(whole) - 1):
        target.write_bytes(whole[:size])
        with pytest.raises(SDEngineError):
            sdengine.load_upscaler(target)


def test_no_whole_scale(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no whole scale"):
        sdengine.load_upscaler(write(tmp_path / "m.safetensors", Rrdb(8, 4, 1, 1, 4, False)))


def test_cancel(folder: Path) -> None:
    upscaler = sdengine.load_upscaler(folder / "rrdb-x4.safetensors")
    timer = threading.Timer(0.2, upscaler.cancel)
    timer.start()
    try:
        with pytest.raises(Cancelled):
            upscaler.upscale([picture(256, 256)] * 50, tile=64)
    finally:
        timer.cancel()
    assert upscaler.upscale(picture(8, 8)).size == (32, 32)
