"""Memory of full-size networks in plain operators grows with the area, also beyond ggml's 1 GiB of offsets."""

from __future__ import annotations

from pathlib import Path

from tests import unet_inventories
from tests.native.test_planned_memory import SDXL, SIDES, assert_linear, network, unet_shapes


def test_a_decoder(tmp_path: Path) -> None:
    found = unet_inventories.detected(SDXL, "diffusers")
    assert found.family is not None
    config = unet_inventories.config_of(found.components["vae"], found.family)
    vae = network(tmp_path / "weights", "autoencoder_kl_decoder", config, portable=True)
    planned = {}
    for side in SIDES[1:]:
        planned[side] = vae.planned_bytes({"latents": [1, 4, side // 8, side // 8]}, {})
    assert_linear(planned)
    assert planned[1024] <= 3.3e9


def test_a_denoiser(tmp_path: Path) -> None:
    config = unet_inventories.detected(SDXL, "diffusers").configs["unet"]
    unet = network(tmp_path / "weights", "unet", config, portable=True)
    # Blocks take 256 MiB at any size: what grows is the rest.
    planned = {side: unet.planned_bytes(unet_shapes(config, side), {}) for side in SIDES}
    growth = {
        side: (planned[side] - planned[512]) / (side**2 - 512**2) for side in SIDES if side > 512
    }
    assert max(growth.values()) <= 1.3 * min(growth.values())
    assert planned[1024] <= 0.85e9
