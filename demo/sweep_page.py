"""The page docs/sampling-pairs.md: the table of a sweep, and why each pair below the mark fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdengine.sampling import SAMPLERS, SCHEDULES

CAPTIONS = 20
ENOUGH = 80
"""Percent of right pictures that a pair needs."""

_ROOT = Path(__file__).parent.parent
RESULTS = _ROOT / "bench" / "results" / "sampling-pairs.json"
PAGE = _ROOT / "docs" / "sampling-pairs.md"

Outcome = int | str
"""Right pictures, or why the pair was refused."""
Results = dict[str, dict[str, Outcome]]
"""Schedule -> sampler -> outcome."""


def read_results(path: Path = RESULTS) -> Results:
    """What a sweep wrote."""
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def guidance_of(sampler: str) -> float | None:
    """The scale that a sampler is run with: 1 for CFG++, which wants about a tenth of the usual."""
    return 1.0 if sampler.endswith("cfg_pp") else None


@dataclass(frozen=True)
class Reason:
    """Why some pairs fail."""

    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    text: str


_EVEN_TO_A_LAST_ONE = ("discrete", "linspace", "leading", "ddim_uniform")

# Each was found by running the pair once more over 10 captions with the levels changed as the text says.
REASONS: tuple[Reason, ...] = (
    Reason(
        ("dpm++3m_sde", "ipndm"),
        (*_EVEN_TO_A_LAST_ONE, "kl_optimal", "laplace"),
        "The last step above 0 is long, from about 0.25 to 0.03, and both carry estimates of a high order on over it:"
        " with k-diffusion's weights, and with weights of even steps. Without the level below 0.1 nine or ten of ten"
        " come out right. `sgm_uniform`, `simple` and `trailing` have no such step.",
    ),
    Reason(
        ("dpm++3m_sde", "dpm2_a", "ipndm"),
        ("karras",),
        "Twelve of the 20 levels lie above 45, where there is nothing to see yet; the steps below are too long for"
        " these samplers. From 14.6 to 0.03, or from 42 to 0.23, `karras` has nine or ten of ten right.",
    ),
    Reason(
        ("heun", "dpm2_a"),
        ("kl_optimal", "laplace"),
        "The first step is 4096 to 12, or 316 to 3. It is done with a slope from its end or near it, whose error is"
        " multiplied by the ratio of the two levels. Without the levels above 45 ten of ten come out right.",
    ),
    Reason(
        ("ipndm",),
        ("beta", "smoothstep"),
        "Weights of even steps, over steps that shrink to a third and less. `ipndm_v`, or `order=3`, has ten of ten"
        " right.",
    ),
    Reason(
        tuple(s for s in SAMPLERS if s != "ipndm_v"),
        ("beta_sigmas",),
        "Even in sigma but for the ends: 19 of the 20 levels lie above 50, then comes 0.03. These samplers take a slope"
        " or a difference over that step. Without the level below 0.1 nine or ten of ten come out right.",
    ),
    Reason(
        ("dpm++2m_sde_heun", "dpm++3m_sde", "ipndm", "ipndm_v", "res_multistep_a"),
        ("vp",),
        "The last step above 0 is 0.36 to 0.01. Without the level below 0.1 ten of ten come out right; `dpm++3m_sde`"
        " and `ipndm` want shorter steps besides (40 instead of 20), or `order=3`, which `ipndm` has.",
    ),
    Reason(
        ("ipndm_v",),
        ("linear_quadratic",),
        "Steps of 10 become steps of 600 at a sigma of 4000. The coefficients of the fourth order, which are those of"
        " other programs, do not add up to 1 where the lengths of steps change. `order=3` has nine of ten right.",
    ),
)


def failing(results: Results) -> list[tuple[str, str, int]]:
    """Sampler, schedule and percent of the pairs below the mark."""
    return [
        (sampler, schedule, percent)
        for schedule in SCHEDULES
        for sampler in SAMPLERS
        if (percent := _percent(results[schedule][sampler])) is not None and percent < ENOUGH
    ]


def unexplained(results: Results) -> list[tuple[str, str, int]]:
    """The failing pairs that no reason covers."""
    return [
        pair
        for pair in failing(results)
        if not any(pair[0] in reason.samplers and pair[1] in reason.schedules for reason in REASONS)
    ]


def page(results: Results) -> str:
    """The page as Markdown.

    Raises:
        ValueError: a pair fails without a reason.
    """
    if left := unexplained(results):
        raise ValueError(f"say in REASONS why these pairs fail: {left}")
    defined = [s for s in SCHEDULES if any(isinstance(v, int) for v in results[s].values())]
    pairs = len(defined) * len(SAMPLERS)
    head = _HEAD.format(
        captions=CAPTIONS,
        enough=ENOUGH,
        pairs=pairs,
        good=pairs - len(failing(results)),
    )
    parts = [head, "\n".join(_table(results, defined))]
    parts += ["## Pairs below the mark, and why", "\n".join(_failures(results))]
    parts += ["## Refused", "\n".join(_refusals(results))]
    return "\n\n".join(parts) + "\n"


def _percent(outcome: Outcome) -> int | None:
    return round(100 * outcome / CAPTIONS) if isinstance(outcome, int) else None


def _table(results: Results, defined: list[str]) -> Iterator[str]:
    yield "| | " + " | ".join(f"`{name}`" for name in defined) + " |"
    yield "|---|" + "---:|" * len(defined)
    for sampler in SAMPLERS:
        cells = []
        for schedule in defined:
            percent = _percent(results[schedule][sampler])
            cells.append(
                "-" if percent is None else str(percent) if percent >= ENOUGH else f"**{percent}**"
            )
        yield f"| `{sampler}` | " + " | ".join(cells) + " |"


def _failures(results: Results) -> Iterator[str]:
    pairs = failing(results)
    for reason in REASONS:
        covered = [p for p in pairs if p[0] in reason.samplers and p[1] in reason.schedules]
        by_sampler = [
            f"`{sampler}` with "
            + ", ".join(
                f"`{schedule}` ({percent} %)" for s, schedule, percent in covered if s == sampler
            )
            for sampler in SAMPLERS
            if any(pair[0] == sampler for pair in covered)
        ]
        yield f"- {'; '.join(by_sampler)}. {reason.text}"


def _refusals(results: Results) -> Iterator[str]:
    texts: dict[str, list[str]] = {}
    for schedule in SCHEDULES:
        for sampler, outcome in results[schedule].items():
            if isinstance(outcome, str):
                texts.setdefault(outcome, []).append(f"`{sampler}` with `{schedule}`")
    for text, named in texts.items():
        whole = [
            schedule
            for schedule in SCHEDULES
            if all(f"`{sampler}` with `{schedule}`" in named for sampler in SAMPLERS)
        ]
        rest = [pair for pair in named if not any(pair.endswith(f"`{s}`") for s in whole)]
        yield f"- {', '.join([f'every sampler with `{s}`' for s in whole] + rest)}: “{text}”."


_HEAD = """# Samplers and schedules on the demo model

How many of {captions} held-out captions come out right, in percent, for every sampler with every schedule: 20 steps,
128 x 128 pixels, the model's own guidance (3; 1 for the CFG++ samplers), one seed per picture. A picture is right when
its shape, its colour and its background are what the caption says, judged from the pixels (`demo/checker.py`).
{good} of {pairs} pairs reach {enough} %; the others are in bold and explained below.

The demo model predicts v and has zero terminal SNR: its largest sigma is 4096 (infinity, clipped as diffusers clips
it), where Stable Diffusion's is 14.6. That is hard on schedules that are even in sigma, and on samplers that
extrapolate over steps of very different lengths. `tests/sampling/test_zero_terminal_snr.py` shows that the samplers
compute what k-diffusion computes over these levels, too.

Made by `python -m demo.sweep` (about 40 minutes in two processes), which keeps its figures in
`bench/results/sampling-pairs.json`; a sample of the pairs is a test (`tests/e2e/test_sampling_pairs.py`)."""
