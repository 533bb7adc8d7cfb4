"""Who does the work of ``compare.py``: the engine and its peers, each with the settings that trials find fastest."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import measuring
from cases import OPENVINO, SDCPP, TORCH, Case

ENGINE = "sdengine"
LIBRARY = "STABLE_DIFFUSION_CPP_LIB"
"""The environment variable with which the binding is pointed to another build of its library."""
LIMITS: dict[str, dict[str, str]] = {
    "avx2": {
        "SDENGINE_CPU": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # torch's and OpenVINO's oneDNN both obey
    }
}
"""Environment that keeps everybody from wider instruction sets; stable-diffusion.cpp is built for one."""

Report = dict[str, Any]


@dataclass
class Contender:
    """Somebody who does the work of a case, with fixed settings."""

    name: str
    weight_type: str
    settings: str
    run: Callable[[], Report]
    reports: list[Report] = field(default_factory=list)
    failure: str = ""
    """Why it does not run."""

    @property
    def key(self) -> str:
        """What it is called among the contenders of a case."""
        return f"{self.name} {self.weight_type}"

    def median(self, key: str) -> float:
        """Median of one figure over the rounds; not a number where it was not measured."""
        values = [report[key] for report in self.reports if key in report]
        return statistics.median(values) if values else float("nan")

    def ratio(self, other: Contender, key: str = "median") -> float:
        """Median over the rounds of this contender's figure over the other's in the same round."""
        pairs = zip(self.reports, other.reports, strict=False)
        ratios = [mine[key] / theirs[key] for mine, theirs in pairs]
        return statistics.median(ratios) if ratios else float("nan")


@dataclass
class Field:
    """Who is there, how they are started, and the trials that were made.

    Attributes:
        threads: of everybody.
        variables: environment of every child process, such as :data:`LIMITS`.
        libraries: further builds of stable-diffusion.cpp's library.
        trials: seconds by trial; those that are known are not made again.
        limit: seconds that a turn may take, and a trial.
        arithmetic: of the engine, see :func:`sdengine.load`.
    """

    threads: int
    variables: Mapping[str, str]
    libraries: Sequence[str] = ()
    trials: dict[str, float] = field(default_factory=dict)
    limit: float = 1800.0
    arithmetic: str = "standard"

    def facts(self, wanted: Sequence[str]) -> dict[str, Report]:
        """Versions of those that are installed; a peer that does not answer is left out, with a line that says so."""
        scripts = {
            ENGINE: "peer_engine.py",
            SDCPP: "peer_sdcpp.py",
            TORCH: "peer_diffusers.py",
            OPENVINO: "peer_openvino.py",
        }
        found: dict[str, Report] = {}
        for name in wanted:
            try:
                found[name] = self._child(scripts[name], ["--facts"])
            except RuntimeError as error:
                print(f"{name} is left out: {str(error).strip().splitlines()[-1]}")
        return found

    def of(self, case: Case, facts: Mapping[str, Report]) -> list[Contender]:
        """Everybody for a case: the engine first, with the types of the case in their order."""
        for weight_type in ("f16", *case.weight_types):
            case.file(weight_type)
        found = [self._engine(case, weight_type) for weight_type in case.weight_types]
        if SDCPP in facts:
            found += self._sdcpp(case)
        if TORCH in facts:
            found += self._diffusers(case)
        if OPENVINO in facts:
            found += self._openvino(case, native_bf16=facts[OPENVINO]["bf16"])
        return found

    def _engine(self, case: Case, weight_type: str) -> Contender:
        def run() -> Report:
            options = ["--weight-type", weight_type, "--arithmetic", self.arithmetic]
            first = weight_type == case.weight_types[0] and not contender.reports
            return self._turn("peer_engine.py", case, [*options, *["--profile"] * first])

        contender = Contender(ENGINE, weight_type, "", run)
        return contender

    def _sdcpp(self, case: Case) -> list[Contender]:
        """With the build and the options that are fastest with f16 weights."""
        builds = {"installed": {}, **{path: {LIBRARY: path} for path in self.libraries}}
        flags: list[list[str]] = [[], ["--flash"]]
        if case.part == "decoder":
            flags = [[], ["--vae-direct"]]
        chosen: tuple[str, list[str]] = "installed", []
        candidates = list(itertools.product(builds, flags))
        chosen = self._fastest("peer_sdcpp.py", case, SDCPP, candidates, builds, case.trial_size)
        if case.part == "denoiser" and case.model.startswith("sd"):  # FLUX has no convolutions
            candidates = [chosen, (chosen[0], [*chosen[1], "--direct"])]
            chosen = self._fastest(
                "peer_sdcpp.py", case, SDCPP, candidates, builds, case.trial_size
            )
        build, options = chosen
        settings = " ".join([*[build] * (len(builds) > 1), *options])

        def contender(weight_type: str) -> Contender:
            if weight_type.endswith("_k"):  # takes minutes to make, and minutes at every load
                kind = ["--case", case.name, "--weight-type", weight_type]
                if reason := self._failure("peer_sdcpp.py", ["--convert", *kind]):
                    return Contender(SDCPP, weight_type, settings, dict, failure=reason)
            work = [*options, "--weight-type", weight_type]
            run = lambda: self._turn("peer_sdcpp.py", case, work, builds[build])  # noqa: E731
            return Contender(SDCPP, weight_type, settings, run)

        return [contender(weight_type) for weight_type in case.weight_types]

    def _diffusers(self, case: Case) -> list[Contender]:
        """float32 in its faster layout, and bfloat16 where the processor has it.

        Tried at the size of the case: which layout is the faster depends on it.
        """
        layouts: list[list[str]] = [[], ["--channels-last"]]
        if not case.model.startswith("sd"):
            layouts = [[]]
        dtypes = ["float32"]
        if not self.variables and "avx512_bf16" in measuring.machine()["features"]:
            dtypes.append("bfloat16")
        found = []
        for dtype in dtypes:
            candidates = [("", ["--dtype", dtype, *layout]) for layout in layouts]
            _, options = self._fastest(
                "peer_diffusers.py", case, TORCH, candidates, {"": {}}, case.size
            )
            layout = "channels-last" if "--channels-last" in options else ""
            found.append(self._plain(TORCH, dtype, layout, "peer_diffusers.py", case, options))
        return found

    def _openvino(self, case: Case, native_bf16: bool) -> list[Contender]:
        """In float32 with every type of weights, and in bfloat16 where the processor has it."""
        if reason := self._failure("peer_openvino.py", ["--convert", "--case", case.name]):
            return [Contender(OPENVINO, "f16", "", dict, failure=reason)]
        precisions = ["f32", *["bf16"] * (native_bf16 and not self.variables)]
        found = []
        for precision, weight_type in itertools.product(precisions, case.openvino_types):
            options = ["--weight-type", weight_type, "--precision", precision]
            label = weight_type if precision == "f32" else f"{weight_type} in bf16"
            found.append(self._plain(OPENVINO, label, "", "peer_openvino.py", case, options))
        return found

    def _plain(
        self,
        name: str,
        weight_type: str,
        settings: str,
        script: str,
        case: Case,
        options: Sequence[str],
    ) -> Contender:
        return Contender(
            name, weight_type, settings, lambda: self._turn(script, case, list(options))
        )

    def _failure(self, script: str, options: Sequence[str]) -> str:
        """Why a preparation did not work; empty where it did."""
        try:
            self._child(script, options)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return f"not converted: {str(error).strip().splitlines()[-1][:300]}"
        return ""

    def _fastest(
        self,
        script: str,
        case: Case,
        name: str,
        candidates: Sequence[tuple[str, list[str]]],
        builds: Mapping[str, Mapping[str, str]],
        size: int,
    ) -> tuple[str, list[str]]:
        """The candidate, a build and options, with the lowest time in a trial of this size; each is tried once."""
        times: list[float] = []
        if len(candidates) == 1:
            return candidates[0]
        for build, options in candidates:
            tried = ["--size", str(size)]
            words = [name, case.model, case.part, *tried[1:], build, *options]
            label = " ".join(word for word in words if word)
            if label not in self.trials:
                self.trials[label] = self._try(script, case, [*options, *tried], builds[build])
                print(f"  trial {label}: {self.trials[label]} s", flush=True)
            times.append(self.trials[label])
        return candidates[times.index(min(times))]

    def _try(
        self, script: str, case: Case, options: list[str], variables: Mapping[str, str]
    ) -> float:
        try:
            return float(self._turn(script, case, options, variables)["median"])
        except (RuntimeError, subprocess.TimeoutExpired):
            return float("inf")

    def _turn(
        self,
        script: str,
        case: Case,
        options: Sequence[str],
        variables: Mapping[str, str] | None = None,
    ) -> Report:
        whole = ["--case", case.name, "--threads", str(self.threads), *options]
        report: Report = self._child(script, whole, variables)
        return {**report, "load_average": measuring.load_average()}

    def _child(
        self, script: str, options: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> Report:
        settings = {**self.variables, **(variables or {})}
        report: Report = measuring.child(script, options, self.threads, settings, self.limit)
        return report


def limited(isa: str) -> Mapping[str, str]:
    """Environment for everybody; also this process's own, for what it asks of the engine.

    Raises:
        KeyError: no limit of that name.
    """
    variables = LIMITS[isa] if isa else {}
    os.environ.update(variables)
    return variables
