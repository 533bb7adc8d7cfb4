"""Measure the demo models: how many held-out captions come out right, judged from pixels.

The model is a diffusers folder (sampled with diffusers) or a GGUF file (sampled with sdengine)::

    python -m demo.evaluate FOLDER_OR_GGUF --sheet grid.png
    python -m demo.evaluate GGUF --lora LORA
    python -m demo.evaluate GGUF --controlnet CONTROLNET
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.checker import MIN_IOU, Verdict, check, check_framed
from demo.shapes import (
    SIZE_WORDS,
    HeldOut,
    Scene,
    contact_sheet,
    draw_edges,
    draw_mask,
    held_out_captions,
    random_scene,
    read_held_out,
)

STEPS = 20
GUIDANCE = 3.0
HELD_OUT = Path(__file__).with_name("held_out.json")

Sampler = Callable[[Sequence[HeldOut], int, float], list[Image.Image]]
"""Makes one picture per test, given the number of steps and the guidance scale."""


@dataclass(frozen=True)
class Score:
    """Parts of the tests, 0 to 1, that show what the caption says."""

    count: int
    all_right: float
    shape: float
    colour: float
    background: float

    @staticmethod
    def of(tests: Sequence[HeldOut], verdicts: Sequence[Verdict]) -> Score:
        """Compare verdicts with what was asked for."""
        pairs = list(zip(tests, verdicts, strict=True))
        shape = sum(v.shape == t.triple[0] for t, v in pairs)
        colour = sum(v.colour == t.triple[1] for t, v in pairs)
        background = sum(v.background == t.triple[2] for t, v in pairs)
        right = sum(v.matches(t.triple) for t, v in pairs)
        count = len(pairs)
        return Score(count, right / count, shape / count, colour / count, background / count)

    def __str__(self) -> str:
        return (
            f"all right {self.all_right:.1%}, shape {self.shape:.1%}, colour {self.colour:.1%},"
            f" background {self.background:.1%}"
        )


def diffusers_sampler(folder: Path, batch: int = 25) -> Sampler:
    """Return a sampler that runs the pipeline of a diffusers folder on the CPU."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def sample(tests: Sequence[HeldOut], steps: int, guidance: float) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for start in range(0, len(tests), batch):
            part = tests[start : start + batch]
            output = pipeline(
                [test.caption for test in part],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(test.seed) for test in part],
            )
            pictures += output.images
        return pictures

    return sample


def engine_sampler(
    path: Path,
    lora: tuple[Path, float] | None = None,
    controlnet: tuple[Path, float] | None = None,
) -> Sampler:
    """Return a sampler that runs a GGUF file with sdengine.

    Args:
        path: the model.
        lora: a LoRA and its strength.
        controlnet: a ControlNet and its strength; it follows :func:`control_scenes`.
    """
    import sdengine

    pipeline = sdengine.load(
        str(path),
        loras=[lora] if lora else [],
        controlnets=[controlnet[0]] if controlnet else [],
    )

    def sample(tests: Sequence[HeldOut], steps: int, guidance: float) -> list[Image.Image]:
        options: list[dict[str, Any]] = [{} for _ in tests]
        if controlnet:
            hints = [draw_edges(scene) for scene in control_scenes(tests)]
            options = [{"control_images": [h], "control_scales": controlnet[1]} for h in hints]
        return [
            pipeline.generate(
                test.caption, steps=steps, guidance_scale=guidance, seed=test.seed, **more
            ).image
            for test, more in zip(tests, options, strict=True)
        ]

    return sample


def control_scenes(tests: Sequence[HeldOut]) -> list[Scene]:
    """Return for each test what its control picture shows: the shape, somewhere in the picture.

    The size is what the caption says, or any.
    """
    scenes = []
    for test in tests:
        rng = random.Random(test.seed)
        words = test.caption.split()
        named = [size for size, said in SIZE_WORDS.items() if any(w and w in words for w in said)]
        scenes.append(random_scene(test.triple, rng, named[0] if named else None, spread=True))
    return scenes


def in_place(
    tests: Sequence[HeldOut], verdicts: Sequence[Verdict]
) -> tuple[list[bool], list[float]]:
    """Return which figures lie where the control picture has them, and how well each overlaps (IoU)."""
    overlaps = [
        verdict.covers(np.asarray(draw_mask(scene.shape, scene.radius, scene.centre)) >= 128)
        for scene, verdict in zip(control_scenes(tests), verdicts, strict=True)
    ]
    return [overlap >= MIN_IOU for overlap in overlaps], overlaps


def judged(
    options: argparse.Namespace, tests: Sequence[HeldOut], pictures: Sequence[Image.Image]
) -> tuple[list[Verdict], str]:
    """Return the verdicts on pictures and what is to be said of the adapter that helped to make them."""
    if options.lora:
        framed = [check_framed(picture) for picture in pictures]
        part = np.mean([has_frame for _, has_frame in framed])
        inside = [verdict for verdict, _ in framed]
        return inside, f", LoRA at {options.scale:g}: framed {part:.1%}"
    verdicts = [check(picture) for picture in pictures]
    if not options.controlnet:
        return verdicts, ""
    right, overlaps = in_place(tests, verdicts)
    return verdicts, (
        f", ControlNet at {options.scale:g}: in place {np.mean(right):.1%},"
        f" mean overlap {np.mean(overlaps):.2f}"
    )


def main() -> None:
    """Command line: evaluate a model and print its score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="diffusers folder or GGUF file")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    adapter = parser.add_mutually_exclusive_group()
    adapter.add_argument("--lora", type=Path, help="the LoRA of frames (GGUF models only)")
    adapter.add_argument("--controlnet", type=Path, help="the ControlNet of edges (the same)")
    parser.add_argument("--scale", type=float, default=1.0, help="the adapter's strength")
    parser.add_argument("--count", type=int, help="only this many tests")
    parser.add_argument("--tests", type=Path, default=HELD_OUT, help="JSON of held-out captions")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the pictures here")
    parser.add_argument("--sheet-count", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the score here")
    parser.add_argument("--failures", action="store_true", help="print each wrong picture")
    options = parser.parse_args()
    tests = read_held_out(options.tests) if options.tests.exists() else held_out_captions()
    tests = tests[: options.count]
    adapters = {
        name: (path, options.scale)
        for name in ("lora", "controlnet")
        if (path := getattr(options, name))
    }
    start = time.perf_counter()
    folder = options.model.is_dir()
    sampler = (
        diffusers_sampler(options.model) if folder else engine_sampler(options.model, **adapters)
    )
    pictures = sampler(tests, options.steps, options.guidance)
    seconds = (time.perf_counter() - start) / len(tests)
    verdicts, remark = judged(options, tests, pictures)
    score = Score.of(tests, verdicts)
    print(
        f"{score.count} captions, {options.steps} steps, guidance {options.guidance:g}:"
        f" {score}{remark}; {seconds:.2f} s per picture"
    )
    if options.failures:
        for test, verdict in zip(tests, verdicts, strict=True):
            if not verdict.matches(test.triple):
                print(f"{test.caption!r}: saw {verdict.triple}, IoU {verdict.iou:.2f}")
    if options.sheet:
        contact_sheet(pictures[: options.sheet_count], 8).save(options.sheet)
    if options.json:
        options.json.write_text(json.dumps(vars(score)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
