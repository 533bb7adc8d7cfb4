"""Pictures in, arrays out and back, and files that are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import ExifTags, Image

from sdengine import images
from sdengine.errors import FormatError, NumericError, OutputError, ParameterError
from sdengine.images import check_output, open_image, resize, save, to_array, to_mask, to_pil
from sdengine.metadata import read_parameters_text

PARAMETERS = "a red circle\nSteps: 20, Seed: 1, Version: test"
FORMATS = ["png", "jpg", "jpeg", "webp", "PNG", "WebP"]


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(width * 1000 + height)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), (x + y) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


# ------------------------------ reading
def test_every_kind_of_source_gives_the_same_array(tmp_path: Path) -> None:
    pixels = noise(20, 12)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = to_array(pixels)
    assert (expected.shape, expected.dtype) == ((1, 3, 12, 20), np.float32)
    for source in (path, str(path), Image.fromarray(pixels), pixels.astype(np.float64) / 255):
        np.testing.assert_array_equal(to_array(source), expected)


def test_values_equal_diffusers() -> None:
    picture = Image.fromarray(noise(16, 8))
    reference = VaeImageProcessor(do_resize=False).preprocess(picture).numpy()
    np.testing.assert_array_equal(to_array(picture), reference)
    values = torch.linspace(-1.2, 1.2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    (expected,) = VaeImageProcessor().postprocess(values, output_type="pil")
    assert np.array_equal(np.asarray(to_pil(values.numpy())[0]), np.asarray(expected))


def test_all_256_levels_survive_the_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(to_pil(to_array(levels))[0])[..., 1], levels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = smooth(24, 16)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in ("a.png", "a.tif"):
        stored.save(tmp_path / name, exif=exif)
        assert np.array_equal(np.asarray(open_image(tmp_path / name)), np.asarray(upright))


def test_transparency_is_laid_on_white_or_read_as_mask(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0] = 255
    pixels[0, :, 3] = (255, 51, 0)  # red, opaque to gone
    array = to_array(pixels)
    np.testing.assert_allclose(
        (array[0, :, 0] + 1) / 2, [[1, 1, 1], [0, 0.8, 1], [0, 0.8, 1]], 1e-6
    )
    np.testing.assert_allclose(to_mask(pixels)[0, 0], [[0, 0.8, 1]], 1e-6)
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "a.png", transparency=0)
    assert (to_array(tmp_path / "a.png")[0, :, 0, 0] == 1).all()
    assert to_mask(tmp_path / "a.png").tolist() == [[[[1, 0]]]]


def test_opaque_mask_is_read_by_brightness() -> None:
    mask = Image.new("L", (2, 1), 0)
    mask.putpixel((1, 0), 255)
    for mode in ("L", "RGB", "RGBA", "1"):
        found = to_mask(mask.convert(mode))
        assert (found.dtype, found.tolist()) == (np.float32, [[[[0, 1]]]])
    assert to_mask(np.array([[False, True]])).tolist() == [[[[0, 1]]]]


@pytest.mark.parametrize(
    ("picture", "grey"),
    [
        (Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)), [0, 128, 255]),
        (Image.fromarray(np.array([[0, 32768, 65535]], np.int32)), [0, 128, 255]),
        (Image.fromarray(np.array([[0, 0.5, 2]], np.float32)), [0, 128, 255]),
        (Image.fromarray(np.array([[0, 128, 255]], np.uint8)), [0, 128, 255]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 0)), [255]),
    ],
    ids=["16 bit", "32 bit", "float", "8 bit", "cmyk"],
)
def test_deep_and_odd_modes(picture: Image.Image, grey: list[int]) -> None:
    assert np.asarray(open_image(picture))[0].tolist() == [[value] * 3 for value in grey]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\[H, W, 4\]; found \(3, 8, 8\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), "found"),
        (np.zeros((0, 8, 3), np.uint8), "found"),
        (np.zeros((8, 8), np.int64), "uint8 or float, not int64"),
        (np.full((8, 8), 200.0), "0 to 1"),
        (np.full((8, 8), -0.5), "0 to 1"),
        (np.full((8, 8), np.nan), "0 to 1"),
        (3, "not int"),
        (None, "not NoneType"),
    ],
)
def test_bad_arrays(array: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        open_image(array)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no such file"):
        open_image(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(FormatError, match="not a readable picture"):
        open_image(tmp_path / "text.png")
    smooth(64, 64).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="cut"):
        open_image(tmp_path / "cut.png")


# ------------------------------ shaping
@pytest.mark.parametrize("mode", images.RESIZE_MODES)
@pytest.mark.parametrize("size", [(64, 64), (96, 40), (24, 90), (48, 32), (1, 1)])
def test_resize_gives_the_size(mode: str, size: tuple[int, int]) -> None:
    for picture in (smooth(48, 32), smooth(48, 32).convert("L")):
        found = resize(picture, size, mode)
        assert (found.size, found.mode) == (size, picture.mode)
    assert to_array(smooth(48, 32), size, mode).shape == (1, 3, size[1], size[0])
    assert to_mask(smooth(48, 32), size, mode).shape == (1, 1, size[1], size[0])


def test_resize_modes() -> None:
    picture = Image.new("RGB", (40, 20), (10, 20, 30))
    picture.paste((200, 0, 0), (0, 0, 4, 20))  # a red stripe at the left
    stretched = np.asarray(resize(picture, (20, 20), "stretch"))
    cropped = np.asarray(resize(picture, (20, 20), "crop"))
    filled = np.asarray(resize(picture, (20, 20), "fill"))
    padded = np.asarray(resize(picture, (20, 20), "pad"))
    assert stretched[10, 0, 0] > 150
    assert (cropped == (10, 20, 30)).all()  # the stripe is cut off
    for inside in (filled, padded):
        assert inside[10, 0, 0] > 150
        assert inside[10, 15].tolist() == [10, 20, 30]
    assert filled[0, 15].tolist() == filled[19, 15].tolist() == [10, 20, 30]
    assert padded[0].tolist() == padded[19].tolist() == [[255] * 3] * 20
    np.testing.assert_array_equal(stretched, picture.resize((20, 20), Image.Resampling.LANCZOS))


def test_same_size_is_not_resampled() -> None:
    picture = smooth(48, 32)
    assert all(resize(picture, (48, 32), mode) is picture for mode in images.RESIZE_MODES)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (70_000, 8)])
def test_bad_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ParameterError, match="1 to 65535"):
        resize(smooth(8, 8), size)


def test_bad_resize_mode() -> None:
    with pytest.raises(ParameterError, match="'stretch', 'crop', 'fill', 'pad', not 'zoom'"):
        resize(smooth(8, 8), (4, 4), "zoom")


def test_bad_tensors() -> None:
    with pytest.raises(ParameterError, match=r"found \(1, 4, 8, 8\)"):
        to_pil(np.zeros((1, 4, 8, 8), np.float32))
    values = np.zeros((3, 3, 8, 8), np.float32)
    values[1, 0, 0, 0] = np.nan
    with pytest.raises(NumericError, match="picture 2 of 3"):
        to_pil(values)


# ------------------------------ writing
@pytest.mark.parametrize("suffix", FORMATS)
def test_save_keeps_pixels_and_parameters(tmp_path: Path, suffix: str) -> None:
    path = save(smooth(64, 48), tmp_path / f"a.{suffix}", PARAMETERS)
    assert os.listdir(tmp_path) == [f"a.{suffix}"]
    assert read_parameters_text(path) == PARAMETERS
    found = np.asarray(open_image(path)).astype(int)
    error = np.abs(found - np.asarray(smooth(64, 48)).astype(int)).mean()
    assert error == 0 if suffix.lower() == "png" else error < 6


def test_lossless_webp_and_quality(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(64, 64))
    save(picture, tmp_path / "a.webp", lossless=True)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.webp")), noise(64, 64))
    sizes = [save(picture, tmp_path / "a.jpg", quality=q).stat().st_size for q in (10, 95)]
    assert sizes[0] * 2 < sizes[1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_save_without_parameters(tmp_path: Path, suffix: str) -> None:
    assert read_parameters_text(save(smooth(8, 8), tmp_path / f"a.{suffix}")) is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_save_takes_any_mode(tmp_path: Path, suffix: str, mode: str) -> None:
    path = save(smooth(8, 8).convert(mode), tmp_path / f"a.{suffix}")
    assert open_image(path).size == (8, 8)


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    saved = save(smooth(8, 8), tmp_path / "a.png").stat().st_mode
    assert saved == (tmp_path / "plain").stat().st_mode


def test_an_old_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    save(smooth(8, 8), path)
    assert open_image(path).size == (8, 8)


class Interrupted(Image.Image):
    """A picture whose encoding fails after some bytes were written."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    @property
    def has_transparency_data(self) -> bool:
        return False

    def convert(self, *_: Any, **__: Any) -> Image.Image:
        return self

    def save(self, file: Any, *_: Any, **__: Any) -> None:
        file.write(b"half")
        raise self.error


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (ValueError("too large"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failure_leaves_the_old_file(
    tmp_path: Path, name: str, error: BaseException, raised: type[BaseException]
) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(raised):
        save(Interrupted(error), tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "old"


def test_unwritable_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = smooth(8, 8)
    for action in (lambda path: save(picture, path), check_output):
        with pytest.raises(OutputError, match="could not be written"):
            action(tmp_path / "absent" / "a.png")
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match=r"folder\.png"):
            action(tmp_path / "folder.png")
        with pytest.raises(ParameterError, match=r"suffix '\.gif'.*\.png, \.jpg, \.jpeg, \.webp"):
            action(tmp_path / "a.gif")
        with pytest.raises(ParameterError, match="no suffix"):
            action(tmp_path / "a")
    assert os.listdir(tmp_path) == ["folder.png"]
    check_output(tmp_path / "a.png")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="read-only"):
        check_output(tmp_path / "a.png")


@pytest.mark.parametrize("quality", [0, 101])
def test_bad_quality(tmp_path: Path, quality: int) -> None:
    with pytest.raises(ParameterError, match=f"1 to 100, not {quality}"):
        save(smooth(8, 8), tmp_path / "a.jpg", quality=quality)


def test_parameters_too_long_for_jpeg(tmp_path: Path) -> None:
    text = "x" * 40_000
    with pytest.raises(ParameterError, match=r"JPEG holds at most.*\.png or \.webp"):
        save(smooth(8, 8), tmp_path / "a.jpg", text)
    assert os.listdir(tmp_path) == []
    for suffix in ("png", "webp"):
        assert read_parameters_text(save(smooth(8, 8), tmp_path / f"a.{suffix}", text)) == text
    fits = "x" * 32_700
    assert read_parameters_text(save(smooth(8, 8), tmp_path / "a.jpg", fits)) == fits


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        save(smooth(8, 8), tmp_path / ("a" * 300 + ".png"))
    assert os.listdir(tmp_path) == []
