"""The engine beside its peers: the same work, in the same run, on the same cores.

``python bench/compare.py --size 512 --threads 4 --weight-type f16,q8_0``

The peers are installed from PyPI: stable-diffusion.cpp through ``stable-diffusion-cpp-python``, and
diffusers on torch; docs/benchmarks.md tells how to build the first at its best. A peer that is not
installed is left out. Every peer runs with the settings that a trial finds fastest for it. The
contenders take turns, each in a process of its own, and the table shows medians and ratios: above 1
the engine is faster, or takes less memory.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measuring
import step
import synthetic

TRIAL_SIZE = 256
"""Pixels of diffusers' trials, where bfloat16 may be slower by orders of magnitude."""
TRIAL_LIMIT = 600.0
"""Seconds that a trial may take; a setting that needs more is not the fastest."""
LIBRARY = "STABLE_DIFFUSION_CPP_LIB"
"""The environment variable with which the binding is pointed to another build of its library."""

Report = dict[str, Any]
Setting = tuple[str, list[str]]
"""The name of a build of stable-diffusion.cpp, and options of peer_sdcpp.py."""


@dataclass
class Contender:
    """Somebody who does the work, with fixed settings."""

    name: str
    weight_type: str
    settings: str
    run: Callable[[], Report]
    reports: list[Report] = field(default_factory=list)

    def median(self, *keys: str) -> float:
        """Median of one figure over the rounds; not a number where it was not measured."""
        values = [value for r in self.reports if (value := _look_up(r, keys)) is not None]
        return statistics.median(values) if values else float("nan")


def _look_up(report: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


class Sdcpp:
    """stable-diffusion.cpp: which build and which options, and how to run it."""

    script = "peer_sdcpp.py"

    def __init__(self, libraries: Sequence[str], arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.builds: dict[str, dict[str, str]] = {}
        self.facts: list[Report] = []
        for number, variables in enumerate(({}, *({LIBRARY: path} for path in libraries)), 1):
            facts = measuring.child(self.script, ["--facts"], 1, variables)
            self.facts.append(facts)
            self.builds[f"{number}:{facts['instructions']}"] = variables
        self.trials: dict[str, float] = {}

    def contender(self, weight_type: str) -> Contender:
        """The fastest build and options for this type of weights."""
        model = self._model(weight_type)
        size = ["--size", str(self.arguments.size)]
        one_step = ["--steps", "1", *size]
        candidates = [(build, flash) for build in self.builds for flash in ([], ["--flash"])]
        build, options = self._fastest(model, candidates, [*one_step, "--no-vae"], "unet")
        for option, part in (("--direct", "unet"), ("--vae-direct", "vae")):
            if part == "unet" or self.arguments.vae:
                candidates = [(build, options), (build, [*options, option])]
                work = one_step + ["--no-vae"] * (part == "unet")
                build, options = self._fastest(model, candidates, work, part)
        work = [*options, *size, "--steps", str(self.arguments.steps)]
        work += ["--no-vae"] * (not self.arguments.vae)
        settings = " ".join([build, *options])
        return Contender(
            "stable-diffusion.cpp", weight_type, settings, lambda: self._run(model, build, work)
        )

    def _fastest(
        self, model: Path, candidates: list[Setting], work: list[str], part: str
    ) -> Setting:
        times: list[float] = []
        for build, options in candidates:
            label = f"{model.name} {' '.join([build, *options])}: {part}"
            if label not in self.trials:
                limit = min(TRIAL_LIMIT, 60 + 3 * min(times, default=TRIAL_LIMIT))
                self.trials[label] = self._try(model, build, [*options, *work], part, limit)
                print(f"  trial {label} {self.trials[label]} s", flush=True)
            times.append(self.trials[label])
        return candidates[times.index(min(times))]

    def _try(self, model: Path, build: str, work: Sequence[str], part: str, limit: float) -> float:
        try:
            return float(self._run(model, build, work, limit)[part]["first"])
        except subprocess.TimeoutExpired:
            return float("inf")

    def _run(
        self, model: Path, build: str, work: Sequence[str], limit: float | None = None
    ) -> Report:
        threads = self.arguments.threads
        options = ["--model", str(model), "--threads", str(threads), *work]
        report: Report = measuring.child(self.script, options, threads, self.builds[build], limit)
        return report

    def _model(self, weight_type: str) -> Path:
        """The common f16 checkpoint, or its own conversion of it, which it loads fastest."""
        plain = synthetic.model()
        if weight_type == synthetic.PLAIN:
            return plain
        converted = plain.with_name(f"sdcpp-{weight_type}.gguf")
        if not converted.is_file():
            options = ["--model", str(plain), "--weight-type", weight_type]
            measuring.child(self.script, [*options, "--convert-to", str(converted)], 1)
        return converted


class Diffusers:
    """diffusers: which memory layout, and whether bfloat16 is any use here."""

    script = "peer_diffusers.py"

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.facts = measuring.child(self.script, ["--facts"], 1)
        self.trials: dict[str, float] = {}

    def contenders(self) -> list[Contender]:
        """float32 in its faster layout, and bfloat16 where that is faster."""
        best: dict[str, tuple[float, list[str]]] = {}
        for dtype, layout in itertools.product(("float32", "bfloat16"), ([], ["--channels-last"])):
            options = ["--dtype", dtype, *layout]
            seconds = self._try(options)
            if seconds < best.get(dtype, (float("inf"),))[0]:
                best[dtype] = seconds, options
        used = ["float32"]
        if best.get("bfloat16", (float("inf"),))[0] < best["float32"][0]:
            used.append("bfloat16")
        return [self._contender(dtype, best[dtype][1]) for dtype in used]

    def _try(self, options: list[str]) -> float:
        size = str(min(TRIAL_SIZE, self.arguments.size))
        work = [*options, "--no-vae", "--size", size, "--steps", "2"]
        try:
            seconds = float(self._run(work, TRIAL_LIMIT)["unet"]["median"])
        except subprocess.TimeoutExpired:
            seconds = float("inf")
        self.trials[" ".join(options)] = seconds
        print(f"  trial diffusers {' '.join(options)}: unet {seconds} s", flush=True)
        return seconds

    def _contender(self, dtype: str, options: list[str]) -> Contender:
        work = [*options, "--size", str(self.arguments.size), "--steps", str(self.arguments.steps)]
        work += ["--no-vae"] * (not self.arguments.vae)
        layout = "channels-last" if "--channels-last" in options else "contiguous"
        return Contender("diffusers", dtype, layout, lambda: self._run(work))

    def _run(self, work: Sequence[str], limit: float | None = None) -> Report:
        threads = self.arguments.threads
        options = ["--model", str(synthetic.model()), "--threads", str(threads), *work]
        report: Report = measuring.child(self.script, options, threads, limit=limit)
        return report


def engine(weight_type: str, arguments: argparse.Namespace) -> Contender:
    """The engine as it comes: it has no settings."""
    return Contender(
        "sdengine",
        weight_type,
        "",
        lambda: step.run(
            weight_type,
            arguments.size,
            arguments.threads,
            arguments.steps - 1,
            guided=False,
            vae=arguments.vae,
        ),
    )


def find_contenders(arguments: argparse.Namespace) -> tuple[list[Contender], Report]:
    """Everybody who is installed, at their best settings, and what the trials were."""
    weight_types = arguments.weight_type.split(",")
    contenders = [engine(weight_type, arguments) for weight_type in weight_types]
    facts: Report = {}
    wanted = arguments.peers.split(",")
    if "sdcpp" in wanted:
        try:
            sdcpp = Sdcpp(arguments.sdcpp_library, arguments)
        except RuntimeError as error:
            print(f"stable-diffusion-cpp-python is left out: {_last_line(error)}")
        else:
            contenders += [sdcpp.contender(weight_type) for weight_type in weight_types]
            facts["stable-diffusion.cpp"] = {"builds": sdcpp.facts, "trials": sdcpp.trials}
    if "diffusers" in wanted:
        try:
            diffusers = Diffusers(arguments)
        except RuntimeError as error:
            print(f"diffusers is left out: {_last_line(error)}")
        else:
            contenders += diffusers.contenders()
            facts["diffusers"] = {**diffusers.facts, "trials": diffusers.trials}
    return contenders, facts


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def table(contenders: Sequence[Contender]) -> str:
    """Medians over the rounds, and ratios to the engine with the same weight type, or its first."""
    lines = [
        "contender             weights   UNet s  ratio   CPU s  ratio   VAE s  ratio"
        "  load s  UNet GB  ratio  peak GB  error"
    ]
    own = {c.weight_type: c for c in reversed(contenders) if c.name == "sdengine"}
    reference = next((c for c in contenders if c.weight_type == "float32"), None)
    for c in contenders:
        base = own.get(c.weight_type) or contenders[0]
        cells = f"{c.name:21} {c.weight_type:8}"
        for keys, width in (
            (("unet", "median"), 8),
            (("unet", "cpu_median"), 7),
            (("vae", "first"), 7),
        ):
            cells += f" {c.median(*keys):{width}.2f} {c.median(*keys) / base.median(*keys):6.2f}"
        memory = c.median("unet_peak_memory")
        cells += f" {c.median('load'):7.2f} {memory / 1e9:8.2f}"
        cells += f" {memory / base.median('unet_peak_memory'):6.2f}"
        cells += f" {c.median('peak_memory') / 1e9:8.2f}  {_error(c, reference)}  {c.settings}"
        lines.append(cells.rstrip())
    return "\n".join(lines)


def _error(contender: Contender, reference: Contender | None) -> str:
    """Relative error of the denoiser's output against diffusers in float32: the same work?"""
    found = _look_up(contender.reports[0], ["unet_probe"])
    if reference is None or found is None:
        return "      -"
    return f"{measuring.relative_error(found, reference.reports[0]['unet_probe']):7.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--weight-type", default="f16,q8_0", help="several with commas")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contender")
    parser.add_argument("--steps", type=int, default=4, help="evaluations a turn, one to warm up")
    parser.add_argument("--peers", default="sdcpp,diffusers", help="which to run")
    parser.add_argument(
        "--sdcpp-library",
        action="append",
        default=[],
        metavar="FILE",
        help="another build of stable-diffusion.cpp's library to try besides the installed one",
    )
    parser.add_argument("--vae", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="default: results/<machine>.json in this folder")
    arguments = parser.parse_args()
    if arguments.steps < 2 or arguments.rounds < 1:
        parser.error("--steps must be at least 2 and --rounds at least 1")
    arguments.threads = arguments.threads or step.default_threads()
    facts, before = measuring.machine(), measuring.load_average()
    measuring.bind_to_cores(arguments.threads)
    contenders, peers = find_contenders(arguments)
    for turn in range(arguments.rounds):
        # Every other round backwards, so that nobody always runs on a processor warmed by another.
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            contender.reports.append(contender.run())
            print(f"  round {turn + 1}: {contender.name} {contender.weight_type}", flush=True)
    print(table(contenders))
    measuring.write_json(
        arguments.json or measuring.HERE / "results" / f"{measuring.slug(facts)}.json",
        {
            "machine": facts,
            "work": {"size": arguments.size, "threads": arguments.threads},
            "load_average": {"before": before, "after": measuring.load_average()},
            "peers": peers,
            "contenders": [
                {
                    "name": c.name,
                    "weight_type": c.weight_type,
                    "settings": c.settings,
                    "rounds": [
                        {k: v for k, v in r.items() if not k.endswith("_probe")} for r in c.reports
                    ],
                }
                for c in contenders
            ],
            "table": table(contenders).splitlines(),
        },
    )


if __name__ == "__main__":
    main()
