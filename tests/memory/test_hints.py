"""What runs before the steps leaves them its memory: hints of control networks, a first pass, a base model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

import sdengine
from sdengine import StepEvent
from sdengine.api import DEMO_MODEL
from sdengine.device_checks import relative_error
from sdengine.devices import PORTABLE
from tests.control.conftest import Folders, picture
from tests.control.models import build_adapter

PROMPT = "a red circle"
OPTIONS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
CONTROLS = {
    "control network": ["sd1-control"],
    "two": ["sd1-control", "sd1-control-1"],
    "adapter": ["t2i"],
    "both kinds": ["t2i", "sd1-control"],
}
Load = Callable[..., sdengine.Pipeline]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = Folders(tmp_path_factory.mktemp("hints"))
    for name in ("sd1", "sd1-control", "sd1-control-1"):
        assert folders[name].exists()
    widths = UNet2DConditionModel.load_config(folders["sd1"] / "unet")["block_out_channels"]
    build_adapter(tuple(widths), 1, "full_adapter", 3).save_pretrained(folders.root / "t2i")
    return folders.root


@pytest.fixture
def load(root: Path) -> Load:
    def loaded(device: str, names: list[str], **options: Any) -> sdengine.Pipeline:
        nets = [root / name for name in names]
        return sdengine.load(
            root / "sd1", device=device, controlnets=nets, prompt_cache=False, **options
        )

    return loaded


def options_for(names: list[str], **more: Any) -> dict[str, Any]:
    hint = Image.fromarray(picture(64, 64, 1))
    return {**OPTIONS, "prompt": PROMPT, "control_images": [hint] * len(names), **more}


def held(pipe: sdengine.Pipeline) -> dict[str, int]:
    """Bytes of activations by network, where there are any."""
    return {n: k.activation_bytes for n, k in pipe.networks.items() if k.activation_bytes}


def planned(plan: sdengine.Plan, name: str) -> dict[str, int]:
    """The same for a stage of a plan."""
    stage = next(stage for stage in plan.stages if stage.name == name)
    return {part.component: part.activations for part in stage.parts}


@pytest.mark.parametrize("device", ["cpu", PORTABLE])
@pytest.mark.parametrize("names", CONTROLS.values(), ids=CONTROLS)
def test_hints_hold_nothing_during_the_steps(load: Load, device: str, names: list[str]) -> None:
    """A step holds what it computes itself, and the plan says so."""
    pipe, options = load(device, names), options_for(names, hires_scale=2)
    plan = pipe.plan(**options)
    run = pipe.start(**options)
    for stage in ("steps", "steps of hires"):
        assert held(pipe) == {}
        while not run.done:
            run.step()
        assert held(pipe) == planned(plan, stage)
        run = run.next_pass() or run
    assert run.is_hires
    hints = {stage.name for stage in plan.stages if stage.name.startswith("control_")}
    numbers = range(len(names))
    assert hints == {f"control_{i}{of}" for i in numbers for of in ("", " of hires")}


@pytest.mark.parametrize(
    ("kind", "more"), [("two", {}), ("adapter", {}), ("both kinds", {"hires_scale": 2})]
)
def test_peaks_are_those_that_were_planned(load: Load, kind: str, more: dict[str, Any]) -> None:
    """All weights on the device, each stage's alone, and as little as works; also a second time."""
    names = CONTROLS[kind]
    options = options_for(names, **more)
    roomy = load(PORTABLE, names, memory_limit="8GB").plan(**options)
    alone = max(sum(part.device for part in stage.parts) for stage in roomy.stages)
    alone += roomy.scratch
    for limit in (8 * 10**9, max(alone, roomy.smallest_limit), roomy.smallest_limit):
        pipe = load(PORTABLE, names, memory_limit=limit)
        plan = pipe.plan(**options)
        assert plan.fits
        for _ in range(2):
            pipe.generate(seed=1, **options)
            peak = pipe.devices.denoiser.peak_bytes
            assert peak <= plan.peak_memory <= min(1.1 * peak, limit)


# In a process of its own: the peak of resident memory cannot be lowered again.
MEASURED = """
import json, sys
import sdengine
from sdengine.devices import peak_memory
root, limit = sys.argv[1:]
options = {"prompt": "a circle", "width": 384, "height": 384, "steps": 2, "hires_scale": 1.5}
options |= {"control_images": root + "/hint.png", "tile": 16}
pipe = sdengine.load(
    root + "/sd1", controlnets=root + "/sd1-control", threads=1, prompt_cache=False,
    memory_limit=limit or None,
)
plan = pipe.plan(**options)
pipe.generate(seed=1, **options)
print(json.dumps([plan.peak_memory, peak_memory(), plan.smallest_limit]))
"""


def measured(root: Path, limit: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(root), limit],
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_stays_within_what_was_planned(root: Path) -> None:
    """Without a limit, where the heap adds a little; and within one that cuts the steps, but cannot cut the hints.

    That plans are not too large is seen on devices that count (above): what a heap keeps differs by a tenth.
    """
    Image.fromarray(picture(384, 384, 1)).save(root / "hint.png")
    plan, peak, smallest = measured(root, "")
    assert peak <= 1.1 * plan
    limit = smallest + 20 * 10**6
    less, peak, _ = measured(root, str(limit))
    assert less <= limit < plan
    assert peak <= limit


@pytest.mark.parametrize("device", ["cpu", PORTABLE])
def test_enlarged_latents_within_a_limit(plain_model: Path, device: str) -> None:
    """The hires pass goes on from them, and was planned with the first."""
    options: dict[str, Any] = {"steps": 2, "seed": 1, "hires_scale": 1.5}
    expected = sdengine.load(plain_model).generate(PROMPT, **options).latents
    limited = sdengine.load(plain_model, device=device, memory_limit="8GB")
    found = limited.generate(PROMPT, **options).latents
    assert relative_error(found, expected) <= 1e-3


@pytest.mark.parametrize("device", ["cpu", PORTABLE])
def test_a_base_model_leaves_its_memory_to_the_refiner(device: str) -> None:
    base, refiner = (sdengine.load(DEMO_MODEL, device=device) for _ in range(2))
    seen = []

    def look(event: StepEvent) -> None:
        seen.append((bool(held(base)), bool(held(refiner))))

    base.generate(PROMPT, steps=4, denoising_end=0.5, refiner=refiner, callback=look)
    assert seen == [(True, False)] * 2 + [(False, True)] * 2


def test_a_run_that_was_left_alone_holds_nothing_of_the_next(load: Load) -> None:
    """Weights that come and go are those of the stage that runs."""
    names = CONTROLS["control network"]
    options = options_for(names)
    roomy = load(PORTABLE, names, memory_limit="8GB").plan(**options)
    limit = max(stage.networks for stage in roomy.stages) + roomy.scratch
    pipe = load(PORTABLE, names, memory_limit=limit)
    pipe.start(**options).step()
    assert pipe.memory is not None
    assert pipe.memory.placement.policies["unet"] == "offload"
    assert pipe.devices.denoiser.allocated_bytes > 0
    pipe.start(**options)
    assert pipe.devices.denoiser.allocated_bytes == 0
