"""Measure the demo model: how many held-out captions come out right, judged from pixels.

The model is a diffusers folder (sampled with diffusers) or a GGUF file (sampled with sdengine)::

    python -m demo.evaluate FOLDER_OR_GGUF --sheet grid.png
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from demo.checker import Verdict, check
from demo.shapes import HeldOut, contact_sheet, held_out_captions, read_held_out

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


def engine_sampler(path: Path) -> Sampler:
    """Return a sampler that runs a GGUF file with sdengine."""
    import sdengine

    pipeline = sdengine.load(str(path))

    def sample(tests: Sequence[HeldOut], steps: int, guidance: float) -> list[Image.Image]:
        return [
            pipeline.generate(
                test.caption, steps=steps, guidance_scale=guidance, seed=test.seed
            ).image
            for test in tests
        ]

    return sample


def evaluate(
    model: Path, tests: Sequence[HeldOut], steps: int = STEPS, guidance: float = GUIDANCE
) -> tuple[Score, list[Image.Image], list[Verdict]]:
    """Sample every test, judge the pictures and return score, pictures and verdicts."""
    sampler = diffusers_sampler(model) if model.is_dir() else engine_sampler(model)
    pictures = sampler(tests, steps, guidance)
    verdicts = [check(picture) for picture in pictures]
    return Score.of(tests, verdicts), pictures, verdicts


def main() -> None:
    """Command line: evaluate a model and print its score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="diffusers folder or GGUF file")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--count", type=int, help="only this many tests")
    parser.add_argument("--tests", type=Path, default=HELD_OUT, help="JSON of held-out captions")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the pictures here")
    parser.add_argument("--sheet-count", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the score here")
    parser.add_argument("--failures", action="store_true", help="print each wrong picture")
    options = parser.parse_args()
    tests = read_held_out(options.tests) if options.tests.exists() else held_out_captions()
    tests = tests[: options.count]
    start = time.perf_counter()
    score, pictures, verdicts = evaluate(options.model, tests, options.steps, options.guidance)
    seconds = (time.perf_counter() - start) / len(tests)
    print(
        f"{score.count} captions, {options.steps} steps, guidance {options.guidance:g}: "
        f"all right {score.all_right:.1%}, shape {score.shape:.1%}, colour {score.colour:.1%}, "
        f"background {score.background:.1%}; {seconds:.2f} s per picture"
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
