"""The cache of texts under all that may change what a text is: never a stale one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine

from .conftest import Models, latents, picture

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 1}


@pytest.fixture(scope="module")
def switches(files: Path) -> list[dict[str, Any]]:
    return [
        {},
        {"clip_skip": 2},
        {"weighting": "compel"},
        {"loras": [(files / "ink.safetensors", 0.5)]},
        {"loras": sdengine.Lora(files / "ink.safetensors", 0.5, 0.9)},
        {"loras": [(files / "word1.safetensors", 0.0)]},
        {"loras": [(files / "word1.safetensors", 1.0)]},
        {"loras": [(files / "word2.safetensors", 1.0)]},
        {"loras": []},
    ]


def test_a_switch_never_meets_an_old_text(
    models: Models, switches: list[dict[str, Any]], tmp_path: Path, files: Path
) -> None:
    cached = sdengine.load(files / "sd1", prompt_cache=tmp_path, lora_dir=files)
    prompt = "an (inky:1.3) cat"
    expected = [latents(models("uncached"), prompt, **SMALL, **switch) for switch in switches]
    assert len({one.tobytes() for one in expected}) >= 6
    again = sdengine.load(files / "sd1", prompt_cache=tmp_path, lora_dir=files)
    for pipe in (cached, cached, again):
        for switch, one in zip(switches, expected, strict=True):
            assert np.array_equal(latents(pipe, prompt, **SMALL, **switch), one), switch


def test_a_word_that_is_learned_later(models: Models, files: Path) -> None:
    pipe, plain = sdengine.load(files / "sd1"), sdengine.load(files / "sd1", prompt_cache=False)
    before = latents(pipe, "a glow", **SMALL)
    for each in (pipe, plain):
        each.add_embedding("glow", files / "glow.pt")
    after = latents(pipe, "a glow", **SMALL)
    assert np.array_equal(after, latents(plain, "a glow", **SMALL))
    assert not np.array_equal(after, before)


def test_tiles_and_a_picture_prompt(models: Models) -> None:
    """Tokens of pictures stand behind a text that comes from the cache, in every tile."""
    options: dict[str, Any] = {"width": 128, "height": 64, "tiled_diffusion": 8}
    cached, plain = models("ip"), models("ip", "uncached")
    for seed in (1, 2, 1):
        found = latents(cached, ip_images=picture(seed), **options)
        assert np.array_equal(found, latents(plain, ip_images=picture(seed), **options))
