"""What the turns of ``compare.py`` say: medians, paired ratios, the floor, and the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cases
import measuring
from cases import Case
from contenders import ENGINE, Contender

Report = dict[str, Any]
NOT_A_NUMBER = float("nan")


def multiply_adds(found: Sequence[Contender]) -> float:
    """Of one evaluation as the engine's profile counted them; convolutions as their direct sums."""
    for contender in found:
        for report in contender.reports:
            if "profile" in report:
                return float(report["profile"]["multiply_adds"])
    return NOT_A_NUMBER


def peak(found: Sequence[Contender]) -> float:
    """10^9 operations a second of all threads: the median of what the engine's turns measured."""
    measured = [p for c in found for report in c.reports for p in report.get("peak_gflops", [])]
    return sorted(measured)[len(measured) // 2] if measured else NOT_A_NUMBER


def floor(found: Sequence[Contender]) -> float:
    """Seconds that the direct operations take at the peak."""
    return 2e-9 * multiply_adds(found) / peak(found)


def base_of(contender: Contender, found: Sequence[Contender]) -> Contender:
    """The engine with the same type of weights, or its first."""
    own = [c for c in found if c.name == ENGINE]
    return next((c for c in own if c.weight_type == contender.weight_type), own[0])


def error(contender: Contender, found: Sequence[Contender]) -> float:
    """Relative L2 of the output from diffusers' in float32 (the engine's f16 where that is not there)."""
    plain = ((cases.TORCH, "float32"), (ENGINE, "f16"))
    outputs = {(c.name, c.weight_type): c.reports[0].get("probe") for c in found if c.reports}
    reference = next((outputs[key] for key in plain if outputs.get(key)), None)
    own = outputs.get((contender.name, contender.weight_type))
    if not reference or not own:
        return NOT_A_NUMBER
    return measuring.relative_error(own, reference)


def best_ratio(peer: str, found: Sequence[Contender]) -> tuple[float, str]:
    """The smallest ratio of the peer's contenders to the engine's of the same type, and whose it is.

    A peer in another precision of calculation, bfloat16, does not count: it is reported beside.
    """
    ratios = [
        (ratio, c.weight_type)
        for c in found
        if c.name == peer
        and "bf" not in c.weight_type
        and not math.isnan(ratio := c.ratio(base_of(c, found)))
    ]
    return min(ratios, default=(NOT_A_NUMBER, ""))


HEADINGS = (
    f"{'contender':21} {'weights':13} {'s':>8} {'ratio':>6} {'of floor':>8} {'GB':>6} {'ratio':>6}"
    f" {'error':>7}  settings"
)


def table(case: Case, found: Sequence[Contender]) -> str:
    """Medians over the rounds; ratios of the contender over the engine, above 1 the engine is faster or smaller."""
    lines = [
        f"{case.title}: {multiply_adds(found) / 1e9:.1f} GMAC, floor {floor(found):.2f} s"
        f" at {peak(found):.0f} GFLOP/s",
        HEADINGS,
    ]
    for c in found:
        if c.failure:
            lines.append(f"{c.name:21} {c.weight_type:13} {c.failure}")
            continue
        base = base_of(c, found)
        lines.append(
            f"{c.name:21} {c.weight_type:13} {c.median('median'):8.2f} {c.ratio(base):6.2f}"
            f" {floor(found) / c.median('median'):8.0%} {c.median('peak_memory') / 1e9:6.2f}"
            f" {c.ratio(base, 'peak_memory'):6.2f} {error(c, found):7.0e}  {c.settings}"
        )
    return "\n".join(lines)


def contenders_of(kept: Mapping[str, Any]) -> list[Contender]:
    """The contenders of a case in the results' file."""
    return [
        Contender(
            *(c["name"], c["weight_type"], c["settings"], dict),
            reports=c["rounds"],
            failure=c["failure"],
        )
        for c in kept["contenders"]
    ]


def document(results: Mapping[str, Any]) -> str:
    """The results as Markdown: ratios beside the targets, then every case."""
    kept = results["cases"]
    measured = [(c, contenders_of(kept[c.name])) for c in cases.CASES if c.name in kept]
    lines = [
        "| work | " + " | ".join((cases.SDCPP, cases.TORCH, cases.OPENVINO)) + " |",
        "|---|---|---|---|",
    ]
    for case, found in measured:
        cells = [_cell(case, peer, found) for peer in (cases.SDCPP, cases.TORCH, cases.OPENVINO)]
        lines.append(f"| {case.title} | " + " | ".join(cells) + " |")
    for case, found in measured:
        lines += ["", *_section(case, found)]
    return "\n".join(lines)


def _cell(case: Case, peer: str, found: Sequence[Contender]) -> str:
    ratio, weight_type = best_ratio(peer, found)
    reached = "not measured" if math.isnan(ratio) else f"{ratio:.2f} ({weight_type})"
    if peer not in case.targets:
        return reached
    needed, aim = case.targets[peer]
    return f"{reached}; {needed:g} → {aim:g}"


def _section(case: Case, found: Sequence[Contender]) -> list[str]:
    lines = [
        f"**{case.title}**: {multiply_adds(found) / 1e9:.1f} GMAC; floor {floor(found):.2f} s at"
        f" {peak(found):.0f} GFLOP/s.",
        "",
        "| | weights | seconds | the first | ratio | floor / time | GB | error | settings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in found:
        if c.failure or not c.reports:
            lines.append(f"| {c.name} | {c.weight_type} | failed | | | | | | {c.failure} |")
            continue
        difference = error(c, found)
        shown = "" if math.isnan(difference) else f"{difference:.0e}"
        lines.append(
            f"| {c.name} | {c.weight_type} | {c.median('median'):.2f} | {c.median('first'):.2f}"
            f" | {c.ratio(base_of(c, found)):.2f} | {floor(found) / c.median('median'):.0%}"
            f" | {c.median('peak_memory') / 1e9:.2f} | {shown} | {c.settings} |"
        )
    return lines
