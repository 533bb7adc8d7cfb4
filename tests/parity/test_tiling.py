"""Pictures in tiles: no seams at any size, bounded memory, and a choice of tiles by what is free."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sdengine import _core, autoencoder
from sdengine.autoencoder import Autoencoder
from sdengine.errors import ParameterError

from .conftest import relative_error
from .reference_autoencoders import REDUCED, open_autoencoder, tiny_reference

# Latents that one picture point of the reduced network can see in each direction: 7 convolutions at
# one latent per point, 4 at a half, 4 at a quarter.
RECEPTIVE_FIELD = 10
FACTOR = 4


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def tiny(sd1_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    """Convolutions only: what a point shows depends on nothing beyond the receptive field."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_reference(seed=3, **REDUCED).save_pretrained(folder)
    return open_autoencoder(sd1_folder, folder, FACTOR)


def tiled(vae: Autoencoder, latents: np.ndarray, size: int, overlap: int) -> np.ndarray:
    return _core.decode_latents(vae.decoder, latents, vae.factor, size, overlap)


@pytest.mark.parametrize(
    "size",
    [(60, 60), (41, 87), (40, 41), (41, 40), (7, 90), (1, 45), (39, 38)],
    ids=["square", "odd", "rest of 1 in x", "rest of 1 in y", "narrow", "line", "smaller"],
)
def test_tiles_equal_the_whole(tiny: Autoencoder, size: tuple[int, int]) -> None:
    latents = noise(1, 4, *size)
    whole = tiled(tiny, latents, 0, 0)
    found = tiled(tiny, latents, 40, 2 * RECEPTIVE_FIELD)
    assert found.shape == (1, 3, FACTOR * size[0], FACTOR * size[1])
    assert relative_error(found, whole) <= 1e-3
    assert np.abs(found - whole).max() <= 1e-3 * np.abs(whole).max()


def test_tiles_of_an_encoder_equal_the_whole(tiny: Autoencoder) -> None:
    image = np.random.default_rng(2).uniform(-1, 1, (1, 3, 180, 244)).astype(np.float32)
    whole = _core.encode_image(tiny.encoder, image, FACTOR)
    found = _core.encode_image(tiny.encoder, image, FACTOR, 40, 20)
    assert found.shape == (1, 4, 45, 61)
    assert relative_error(found, whole) <= 1e-3


def test_a_batch_in_tiles_is_its_pictures_in_tiles(tiny: Autoencoder) -> None:
    latents = noise(3, 4, 20, 28)
    both = tiny.decode(latents, tile=12)
    for one, picture in zip(latents, both, strict=True):
        assert np.array_equal(tiny.decode(one[None], tile=12)[0], picture)


def test_no_seam_where_tiles_differ(sd1_folder: Path) -> None:
    # Group norms and attention see one tile only, so tiles of a KL autoencoder differ.
    vae = open_autoencoder(sd1_folder)
    latents = noise(1, 4, 21, 33, seed=5)
    whole, found = vae.decode(latents, tile=0), vae.decode(latents, tile=12)
    for axis in (-1, -2):
        # The largest step from one line of points to the next, beside the usual one.
        unevenness = []
        for picture in (whole, found):
            others = tuple(i for i in range(4) if i != axis % 4)
            steps = np.abs(np.diff(picture, axis=axis)).mean(axis=others)
            unevenness.append(steps.max() / np.median(steps))
        assert unevenness[1] <= 1.1 * unevenness[0]


@pytest.mark.parametrize("tile", [-1, 4, 7, 1025, 8.0, "64"])
def test_bad_tiles(tiny: Autoencoder, tile: object) -> None:
    with pytest.raises(ParameterError, match="tile must be"):
        tiny.decode(noise(1, 4, 8, 8), tile=tile)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------- memory
def test_the_plan_is_what_is_taken(sd1_folder: Path) -> None:
    vae = open_autoencoder(sd1_folder)
    planned = vae.decoder.planned_bytes({"latents": [1, 4, 17, 12]})
    assert vae.decoder.activation_bytes == 0
    vae.decoder.run({"latents": noise(1, 4, 17, 12)})
    assert vae.decoder.activation_bytes == planned
    vae.decode(noise(1, 4, 17, 12), tile=0)
    assert vae.decoder.activation_bytes == 0
    assert vae.decoder.planned_bytes({"latents": [1, 4, 34, 12]}) > 1.8 * planned


def test_four_full_maps_are_alive_at_most(sd1_folder: Path) -> None:
    # The first resnet of the last level: its input of twice the width, its shortcut, and the map
    # between its convolutions.
    vae = open_autoencoder(sd1_folder)
    full = 4 * 32 * 256 * 256  # bytes of a map of 32 channels
    planned = vae.decoder.planned_bytes({"latents": [1, 4, 32, 32]})
    assert planned <= 1.05 * 4 * full


def test_tiles_follow_the_free_memory(sd1_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = open_autoencoder(sd1_folder)
    latents = noise(1, 4, 50, 70)

    def plan(*size: int) -> int:
        return vae.decoder.planned_bytes({"latents": [1, 4, *size]})

    def chosen(free: int) -> tuple[int, int]:
        monkeypatch.setattr(autoencoder, "available_memory", lambda: free)
        return autoencoder._tiling(vae.decoder, "latents", latents.shape, 1, None, 0)

    assert chosen(2 * plan(50, 70)) == (0, 0)
    assert chosen(2 * plan(50, 70) - 2) == (48, 12)
    assert chosen(2 * plan(48, 48) - 2) == (32, 8)
    assert chosen(1 << 20) == (32, 8)  # no smaller, whatever it takes
    monkeypatch.setattr(autoencoder, "MOST_BYTES", plan(48, 48))
    assert chosen(1 << 40) == (48, 12)
    assert np.array_equal(vae.decode(latents), vae.decode(latents, tile=48))
    vae.decoder.run({"latents": np.ascontiguousarray(latents[:, :, :48, :48])})
    assert vae.decoder.activation_bytes == plan(48, 48)
    # The graph that is there already does not count against itself.
    monkeypatch.setattr(autoencoder, "MOST_BYTES", 1 << 40)
    assert chosen(2 * plan(50, 70) - vae.decoder.activation_bytes) == (0, 0)


def test_the_encoder_chooses_too(sd1_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = open_autoencoder(sd1_folder)
    image = np.random.default_rng(4).uniform(-1, 1, (1, 3, 320, 272)).astype(np.float32)
    monkeypatch.setattr(
        autoencoder, "MOST_BYTES", vae.encoder.planned_bytes({"image": [1, 3, 256, 256]})
    )
    assert np.array_equal(vae.encode(image), vae.encode(image, tile=32))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_system_tells_how_much_is_free() -> None:
    from sdengine.devices import available_memory, devices

    assert 0 < available_memory() <= devices()[0].memory
