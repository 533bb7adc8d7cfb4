"""Plans count what runs besides the model's own networks: previews, upscalers, control networks, adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

import sdengine
from sdengine import Frames
from sdengine.device_checks import relative_error
from sdengine.errors import OutOfMemoryError
from sdengine.upscalers import load_upscaler
from tests import upscaler_models
from tests.adapters.files import ATTENTION, kohya, lora, write
from tests.control.conftest import Folders, picture
from tests.control.models import build_vision, flat, ip_adapter_state
from tests.test_preview_methods import taesd
from tests.unet_models import build_unet, write_safetensors

PROMPT = "a red circle"
OPTIONS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 1}
HINT = Image.fromarray(picture(64, 64, 1))
Load = Callable[..., sdengine.Pipeline]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    taesd(root / "taesd")
    upscaler_models.write(root / "x4.pth", upscaler_models.make("rrdb-x4"))
    matrices = lora(build_unet("sd1", 4), ATTENTION, kohya("lora_unet_"), rank=4, seed=1)
    write(root / "ink.safetensors", matrices)
    folders = Folders(root)
    for name in ("sd1", "sd1-control", "sd1-control-1"):
        assert folders[name].exists()
    build_vision().save_pretrained(root / "image_encoder")
    unet = UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet")
    write_safetensors(flat(ip_adapter_state(unet, plus=True)), root / "plus.safetensors")
    return root


@pytest.fixture
def load(files: Path) -> Load:
    def loaded(device: Any = "cpu:portable", **options: Any) -> sdengine.Pipeline:
        return sdengine.load(files / "sd1", device=device, prompt_cache=False, **options)

    return loaded


@dataclass(frozen=True)
class Case:
    """A generation in which more runs.

    Attributes:
        loading: options of `load`, paths below the folder of files.
        options: of the generation.
        method: of previews at every step; empty for none.
    """

    loading: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    method: str = ""

    def callback(self) -> Frames | None:
        return Frames(method=self.method) if self.method else None


CASES = {
    "two controls": Case(
        {"controlnets": ["sd1-control", "sd1-control-1"]}, {"control_images": [HINT, HINT]}
    ),
    "image prompt": Case({"ip_adapter": "plus.safetensors"}, {"ip_images": HINT}),
    "adapter": Case({"loras": ["ink.safetensors"]}),
    "tiny previews": Case({"preview_vae": "taesd"}, method="tiny"),
    "full previews": Case(method="full"),
    "upscaler": Case({}, {"hires_scale": 2, "hires_upscaler": "x4.pth"}),
}


def below(files: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The same with paths in place of names of files."""
    made = {}
    for name, value in values.items():
        if isinstance(value, str):
            made[name] = str(files / value)
        elif isinstance(value, list):
            made[name] = [str(files / each) if isinstance(each, str) else each for each in value]
        else:
            made[name] = value
    return made


@pytest.mark.parametrize("share", [1.5, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_limits_are_kept_and_predicted(load: Load, files: Path, name: str, share: float) -> None:
    case = CASES[name]
    loading, options = below(files, case.loading), {**OPTIONS, **below(files, case.options)}
    whole = load(**loading).plan(prompt=PROMPT, memory_limit="8GB", **options).peak_memory
    limit = round(share * whole)
    pipe = load(**loading, memory_limit=limit)
    plan = pipe.plan(prompt=PROMPT, **options)
    if not plan.fits:
        assert plan.smallest_limit > limit
        with pytest.raises(OutOfMemoryError, match="is the smallest that works"):
            pipe.generate(PROMPT, **options)
        limit = plan.smallest_limit
        pipe = load(**loading, memory_limit=limit)
        plan = pipe.plan(prompt=PROMPT, **options)
        assert plan.fits
    assert pipe.generate(PROMPT, callback=case.callback(), **options).image
    peak = pipe.devices.denoiser.peak_bytes
    assert peak <= limit
    assert plan.peak_memory == pytest.approx(peak, rel=0.1)


def test_previews_leave_the_picture_as_it_is(load: Load, files: Path) -> None:
    """Beside the denoiser, or in its place."""
    wanted = load(memory_limit="8GB").generate(PROMPT, **OPTIONS).latents
    roomy = load(memory_limit="8GB", preview_vae=files / "taesd")
    assert roomy.plan(prompt=PROMPT, **OPTIONS).placement.preview_beside
    least = roomy.plan(prompt=PROMPT, **OPTIONS).smallest_limit
    tight = load(memory_limit=least, preview_vae=files / "taesd")
    assert not tight.plan(prompt=PROMPT, **OPTIONS).placement.preview_beside
    pictures = []
    for pipe in (roomy, tight):
        frames = Frames(method="tiny")
        found = pipe.generate(PROMPT, callback=frames, **OPTIONS).latents
        assert relative_error(found, wanted) <= 1e-5
        pictures.append(np.asarray(frames.images[0], np.float32))
    assert np.abs(pictures[0] - pictures[1]).mean() < 3


def test_an_upscaler_is_cut_into_tiles_to_fit(load: Load, files: Path) -> None:
    options = {**OPTIONS, "width": 128, "height": 128}
    options |= {"hires_scale": 2, "hires_upscaler": str(files / "x4.pth")}
    roomy, tight = load(memory_limit="8GB"), load(memory_limit="8GB")
    plan = roomy.plan(prompt=PROMPT, **options)
    names = [stage.name for stage in plan.stages]
    expected = ["text_encoder", "encode", "steps", "upscale", "steps of hires", "decode"]
    assert names == expected
    most = next(stage for stage in plan.stages if stage.name == "upscale")
    least = tight.plan(prompt=PROMPT, **{**options, "memory_limit": most.networks // 2})
    assert least.placement.upscaling is not None
    assert plan.placement.upscaling is not None
    assert least.placement.upscaling < plan.placement.upscaling
    given = load_upscaler(files / "x4.pth", device="cpu:portable", threads=1)
    same = roomy.plan(prompt=PROMPT, **{**options, "hires_upscaler": given})
    assert same.peak_memory == plan.peak_memory


PARTS = ("denoiser", "text", "vae")


@pytest.mark.parametrize("foreign", PARTS)
def test_a_device_for_each_part(load: Load, foreign: str) -> None:
    """One part has memory of its own; its limit is that device's, and the others are the process's."""
    devices = {part: "cpu:portable" if part == foreign else "cpu" for part in PARTS}
    stage_of = {"denoiser": "steps", "text": "text_encoder", "vae": "decode"}
    pipe = load(devices)
    plan = pipe.plan(prompt=PROMPT, **OPTIONS)
    where = {stage.name: stage.device for stage in plan.stages}
    assert {part: where[name] for part, name in stage_of.items()} == devices
    limited = load(devices, memory_limit=plan.peak_memory)
    planned = limited.plan(prompt=PROMPT, **OPTIONS)
    assert planned.fits
    limited.generate(PROMPT, **OPTIONS)
    peak = getattr(limited.devices, foreign).peak_bytes
    assert 0 < peak <= plan.peak_memory
    assert planned.peak_memory == pytest.approx(peak, rel=0.1)
    assert planned.peak_host_memory > planned.peak_memory
    # Half of what the process holds; what exactly changes while tests run.
    tight = limited.plan(prompt=PROMPT, host_memory_limit=planned.ground // 2, **OPTIONS)
    assert not tight.fits
    assert "host_memory_limit=" in tight.needed[0]
    text = str(planned)
    assert "cpu:portable" in text
    assert "host peak" in text
