"""Tiled diffusion against diffusers' pipelines whose UNet is evaluated tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdengine
from sdengine import TiledDiffusion, control
from sdengine.api import demo_pipeline
from sdengine.errors import OutOfMemoryError, ParameterError
from sdengine.memory import ground, scenes
from tests.control.models import build_controlnet

from .conftest import NEGATIVE, PROMPT, SEED, Folders, reference, relative_error

LIMIT = 1e-4
STEPS = {"num_inference_steps": 3, "guidance_scale": 4.0}
SAME = {"steps": 3, "guidance_scale": 4.0, "seed": SEED, "sampler": "euler"}


# ------------------------------ the reference
def starts(total: int, tiles: TiledDiffusion, ring: bool) -> list[int]:
    stride = tiles.size - tiles.overlap
    if total <= tiles.size:
        return [0]
    if ring:
        return list(range(0, total, stride))
    return [*range(0, total - tiles.size, stride), total - tiles.size]


def window(size: int, kind: str) -> torch.Tensor:
    at = (torch.arange(size) + 0.5) / size - 0.5
    return torch.exp(-(at**2) / 0.02) if kind == "gaussian" else torch.ones(size)


def in_tiles(
    evaluate: Callable[..., torch.Tensor],
    tiles: TiledDiffusion,
    ring: bool = False,
    channels: int = 4,
) -> Callable[..., Any]:
    """MultiDiffusion's mean (Bar-Tal et al. 2023, equation 5) of a UNet's `forward`.

    `evaluate` takes the tile, its rows and columns, and the other arguments.
    """

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        height, width = sample.shape[2:]
        total = torch.zeros(len(sample), channels, height, width)
        count = torch.zeros(height, width)
        for top in starts(height, tiles, ring):
            for left in starts(width, tiles, ring):
                rows = torch.arange(top, top + min(tiles.size, height)) % height
                columns = torch.arange(left, left + min(tiles.size, width)) % width
                down, across = (window(len(at), tiles.weights) for at in (rows, columns))
                weights = down[:, None] * across[None]
                tile = sample[:, :, rows][..., columns]
                made = evaluate(tile, rows, columns, *args, **kwargs)
                for i, row in enumerate(rows):
                    total[:, :, row, columns] += (weights * made)[:, :, i]
                    count[row, columns] += weights[i]
        return (total / count,)

    return forward


def plain(unet: Any) -> Callable[..., torch.Tensor]:
    own = unet.forward
    return lambda tile, rows, columns, *args, **kwargs: own(tile, *args, **kwargs)[0]


def expected(
    pipe: Any, tiles: TiledDiffusion, ring: bool = False, evaluate: Any = None, **options: Any
) -> np.ndarray:
    pipe.unet.forward = in_tiles(evaluate or plain(pipe.unet), tiles, ring)
    generator = torch.Generator().manual_seed(SEED)
    return pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        generator=generator,
        output_type="latent",
        **{**STEPS, **options},
    ).images.numpy()


SIZE = {"width": 200, "height": 112}  # the last tiles are flush with the edges


@pytest.mark.parametrize(
    "tiles",
    [TiledDiffusion(16, 8), TiledDiffusion(8, 0, "uniform"), TiledDiffusion(16, 8, "uniform")],
    ids=str,
)
def test_stable_diffusion_1(folders: Folders, tiles: TiledDiffusion) -> None:
    pipe = reference("StableDiffusionPipeline", folders("sd1"))
    wanted = expected(pipe, tiles, **SIZE)
    model = sdengine.load(folders("sd1"))
    found = model.generate(PROMPT, NEGATIVE, tiled_diffusion=tiles, **SAME, **SIZE)
    assert relative_error(found.latents, wanted) <= LIMIT
    whole = model.generate(PROMPT, NEGATIVE, **SAME, **SIZE)
    assert relative_error(whole.latents, wanted) > 0.01


def test_tiles_reach_over_the_edges_of_a_ring(folders: Folders) -> None:
    tiles = TiledDiffusion(8, 0, "uniform")
    pipe = reference("StableDiffusionPipeline", folders("sd1"))
    wanted = expected(pipe, tiles, ring=True, width=160, height=96)
    found = sdengine.load(folders("sd1")).generate(
        *(PROMPT, NEGATIVE), tiled_diffusion=tiles, seamless="xy", width=160, height=96, **SAME
    )
    assert relative_error(found.latents, wanted) <= LIMIT


def test_sdxl_is_told_the_size_of_a_tile(folders: Folders) -> None:
    tiles = TiledDiffusion(16, 8)
    pipe = reference("StableDiffusionXLPipeline", folders("sdxl"))
    told = {"original_size": (112, 128), "target_size": (112, 128)}
    wanted = expected(pipe, tiles, **SIZE, **told)
    model = sdengine.load(folders("sdxl"))
    found = model.generate(PROMPT, NEGATIVE, tiled_diffusion=tiles, **SAME, **SIZE)
    assert relative_error(found.latents, wanted) <= LIMIT


def test_stable_diffusion_3(folders: Folders) -> None:
    tiles, size = TiledDiffusion(16, 8), {"width": 208, "height": 112}
    pipe = reference("StableDiffusion3Pipeline", folders("sd3"))
    mean = in_tiles(plain(pipe.transformer), tiles, channels=16)
    pipe.transformer.forward = lambda hidden_states, **kwargs: mean(hidden_states, **kwargs)
    wanted = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **STEPS,
        **size,
    ).images.numpy()
    model = sdengine.load(folders("sd3"))
    found = model.generate(PROMPT, NEGATIVE, tiled_diffusion=tiles, **SAME, **size)
    assert relative_error(found.latents, wanted) <= LIMIT


def test_a_schedule_that_depends_on_the_size_is_that_of_a_tile(folders: Folders) -> None:
    model = sdengine.load(folders("flux"))

    def level(side: int, **more: Any) -> float:
        run = model.start(PROMPT, width=side, height=side, steps=3, seed=1, **more)
        run.step()
        return run.sigma

    assert level(256, tiled_diffusion=16) == level(128) != level(256)


def test_pictures_of_an_inpainting_model_are_cut_alike(folders: Folders) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (112, 200, 3), np.uint8))
    mask = Image.fromarray(np.uint8(rng.integers(0, 2, (14, 25)) * 255)).resize((200, 112), 0)
    tiles = TiledDiffusion(16, 8)
    pipe = reference("StableDiffusionInpaintPipeline", folders("sd1-inpaint"))
    wanted = expected(pipe, tiles, image=image, mask_image=mask, strength=1.0, **SIZE)
    found = sdengine.load(folders("sd1-inpaint")).generate(
        *(PROMPT, NEGATIVE), image=image, mask=mask, tiled_diffusion=tiles, **SAME, **SIZE
    )
    assert relative_error(found.latents, wanted) <= LIMIT


def test_control_is_cut_alike(folders: Folders, tmp_path: Path) -> None:
    net = build_controlnet("sd1", seed=1)
    net.save_pretrained(tmp_path / "control")
    pixels = np.random.default_rng(1).integers(0, 256, (112, 200, 3), np.uint8)
    hint = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        features = net.controlnet_cond_embedding(hint)
    pipe = reference("StableDiffusionPipeline", folders("sd1"))
    own = pipe.unet.forward

    def steered(tile: Any, rows: Any, columns: Any, time: Any, **kwargs: Any) -> torch.Tensor:
        """The picture is read once, as a whole; what it came to is cut."""
        part = features[:, :, rows][..., columns]
        net.controlnet_cond_embedding.forward = lambda _: part
        context = kwargs["encoder_hidden_states"]
        down, mid = net(tile, time, context, part, 0.8, return_dict=False)
        kwargs |= {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return own(tile, time, **kwargs)[0]

    tiles = TiledDiffusion(16, 8)
    wanted = expected(pipe, tiles, evaluate=steered, **SIZE)
    model = sdengine.load(folders("sd1"), controlnets=[tmp_path / "control"])
    given = {"control_images": Image.fromarray(pixels), "control_scales": 0.8}
    found = model.generate(PROMPT, NEGATIVE, tiled_diffusion=tiles, **given, **SAME, **SIZE)
    assert relative_error(found.latents, wanted) <= LIMIT


def test_large_control_pictures_are_read_in_bands(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_controlnet("sd1", seed=1).save_pretrained(tmp_path / "control")
    model = sdengine.load(folders("sd1"), controlnets=[tmp_path / "control"])
    given = {"control_images": Image.effect_noise((64, 360), 90), "width": 64, "height": 360}
    whole = model.generate(PROMPT, **given, **SAME).latents
    monkeypatch.setattr(control, "_BAND", 128)
    in_bands = model.generate(PROMPT, **given, **SAME).latents
    assert relative_error(in_bands, whole) <= 1e-6
    monkeypatch.setattr(control, "_MARGIN", 0)
    assert relative_error(model.generate(PROMPT, **given, **SAME).latents, whole) > 1e-4


# ------------------------------ on the demo model
@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    return demo_pipeline()


LARGE = {"width": 256, "height": 256, "steps": 4, "seed": 3}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_tile_is_the_plain_run(pipe: sdengine.Pipeline, guidance: float) -> None:
    options = {"steps": 3, "seed": 3, "batch_size": 2, "guidance_scale": guidance}
    plain_run = pipe.generate(PROMPT, **options)
    tiled = pipe.generate(PROMPT, tiled_diffusion=TiledDiffusion(16, 8), **options)
    np.testing.assert_array_equal(tiled.latents, plain_run.latents)
    assert tiled.images == plain_run.images


def test_a_batch_is_single_pictures(pipe: sdengine.Pipeline) -> None:
    options = {**LARGE, "steps": 2, "tiled_diffusion": True, "sampler": "euler_a"}
    batch = pipe.generate(PROMPT, batch_size=2, **options)
    for i in range(2):
        one = pipe.generate(PROMPT, **{**options, "seed": 3 + i})
        assert relative_error(batch.latents[i : i + 1], one.latents) <= 1e-5


def test_guidance_acts_on_the_whole_picture(pipe: sdengine.Pipeline) -> None:
    """Tiles that do not overlap are pictures of their own, but for guidance that measures all of the picture."""
    noise = sdengine.random.normal([1, 4, 32, 32], 3)
    kinds = {"perturbed_attention": sdengine.guidance.PerturbedAttention(), "scale": 3.0}

    def estimate(part: np.ndarray, **more: Any) -> np.ndarray:
        height, width = (8 * side for side in part.shape[2:])
        guidance = sdengine.Guidance(**kinds, **more)
        tiles = TiledDiffusion(16, 0)
        options = {"width": width, "height": height, "guidance": guidance, "tiled_diffusion": tiles}
        run = pipe.start(PROMPT, seed=3, steps=4, latents=part, **options)
        run.step()
        assert run.evaluations == 3 * part.size // noise[..., :16, :16].size
        return run.denoised

    corner = np.s_[:, :, 16:, :16]
    for more, same in (({}, True), ({"rescale": 0.7}, False)):
        alone, whole = estimate(noise[corner], **more), estimate(noise, **more)[corner]
        assert (relative_error(alone, whole) <= 1e-6) == same


def jumps(latents: np.ndarray, at: int) -> float:
    """Mean step across the lines `at`, in those of other lines; the same in both directions."""
    found = []
    for axis in (2, 3):
        steps = np.abs(np.diff(latents, axis=axis))
        lines = steps.mean(axis=tuple(i for i in range(4) if i != axis))
        found.append(lines[at - 1] / np.median(lines))
    return float(np.mean(found))


def test_overlapping_tiles_leave_no_seam(pipe: sdengine.Pipeline) -> None:
    def seam(tiles: TiledDiffusion, lines: list[int]) -> float:
        prompt = "a red circle on a blue background"
        runs = [
            pipe.generate(prompt, **{**LARGE, "steps": 8, "seed": seed}, tiled_diffusion=tiles)
            for seed in range(2)
        ]
        return float(np.mean([jumps(run.latents, line) for run in runs for line in lines]))

    assert seam(TiledDiffusion(16, 0), [16]) > 1.6
    assert seam(TiledDiffusion(16, 8), [8, 16, 24]) < 1.3


def test_memory_is_that_of_one_tile(pipe: sdengine.Pipeline) -> None:
    def planned(**options: Any) -> int:
        steps = next(stage for stage in pipe.plan(**options).stages if stage.name == "steps")
        return sum(part.activations for part in steps.parts)

    small = planned(width=128, height=128)
    assert planned(width=1024, height=1024, tiled_diffusion=True) == small
    assert planned(width=1024, height=1024) > 30 * small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 6144, "height": 6144},
            r"a step at 6144x6144 .* or tiled_diffusion=True",
        ),
        ({"width": 8192, "height": 8192, "tiled_diffusion": True}, "decoding 8192x8192"),
        ({"width": 2048, "height": 2048, "tiled_diffusion": True, "tile": 0}, "use tile=64"),
        (
            {"hires_width": 6144, "hires_height": 6144},
            "a step at 6144x6144",
        ),
    ],
    ids=["step", "picture", "whole", "second pass"],
)
def test_too_large_a_picture_is_refused_before_the_first_step(
    pipe: sdengine.Pipeline, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground, "available_memory", lambda: 10**9)
    if message.startswith("a step"):  # the finished picture takes as much, and is no part of it
        monkeypatch.setattr(scenes, "picture_bytes", lambda *_: 0)
    with pytest.raises(OutOfMemoryError, match=message):
        pipe.start(PROMPT, **options)
    monkeypatch.setattr(ground, "available_memory", lambda: 0)  # it does not tell
    pipe.start(PROMPT, **options)


def test_a_second_pass_in_tiles(pipe: sdengine.Pipeline) -> None:
    options = {"steps": 4, "seed": 3, "hires_scale": 2, "hires_strength": 0.5}
    evaluations: list[int] = []
    result = pipe.generate(
        PROMPT,
        **options,
        tiled_diffusion=True,
        callback=lambda event: evaluations.append(event.run.evaluations),
    )
    assert evaluations == [2, 4, 6, 8, 18, 36]
    assert result.image.size == (256, 256)
    assert result.metadata[0]["tiled_diffusion"] == TiledDiffusion(16, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("large", "tiled_diffusion must be True, the side of a tile"),
        ({"side": 64}, "tiled_diffusion must be True"),
        (60, "size must be a multiple of 8 from 8 to 512 latents, not 60"),
        ({"size": 16, "overlap": 16}, "overlap must be a multiple of 8 from 0 to 8 latents"),
        ({"overlap": -8}, "overlap must be"),
        ({"weights": "flat"}, "weights must be one of 'gaussian', 'uniform', not 'flat'"),
    ],
)
def test_bad_tiles(pipe: sdengine.Pipeline, given: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        pipe.start(PROMPT, tiled_diffusion=given)


def test_figures_that_are_left_open(pipe: sdengine.Pipeline) -> None:
    def of(given: Any) -> TiledDiffusion | None:
        return pipe.start(PROMPT, tiled_diffusion=given).parameters.tiled_diffusion

    assert of(True) == TiledDiffusion(16, 8, "gaussian")
    assert of(96) == TiledDiffusion(96, 24, "gaussian")
    assert of({"overlap": 0, "weights": "uniform"}) == TiledDiffusion(16, 0, "uniform")
    assert (of(False), of(None)) == (None, None)


def test_reference_pictures_do_not_go_with_tiles() -> None:
    run = demo_pipeline().start(PROMPT, **LARGE, tiled_diffusion=True)
    (_, branches), *_ = run._inputs.phases
    for branch in branches:
        inputs: Any = branch.inputs
        inputs["reference"] = np.zeros((1, 4, 8, 8), np.float32)
    with pytest.raises(ParameterError, match="does not go with reference pictures"):
        run._made()
