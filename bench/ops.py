"""Matrix products by weight type and shape: the engine's kernel beside ggml's own, in turns.

``python bench/ops.py --threads 1 --types f16,q8_0,q4_0,q4_K --json ops.json``

Three paths compute the same product in this process: the engine's kernel, ggml's (the pinned one of this build, with
its tiled products), and ggml's from buffers of interleaved rows, for the types that it can interleave here. Times are
medians, ratios medians over the turns: above 1 the engine is faster. `error` is relative L2 from the exact product of
the decoded weights; ggml rounds the activations, to int8 for quantized weights. `of f16` is the engine's time over its
own with f16 weights: how much slower quantized weights are.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from kernels import Array, block_size

from sdengine import _core, errors

kernels = _core.kernels
TYPES = "f32,f16,bf16,q8_0,q5_0,q4_0,q6_K,q5_K,q4_K,q3_K,q2_K"
SHAPES = [
    # One row each of a prompt or a timestep: embeddings and modulations.
    (1, 1280, 1280),
    (1, 3072, 18432),
    (2, 1280, 1280),
    (4, 3072, 9216),
    (8, 3072, 9216),
    (16, 3072, 9216),
    # Text: CLIP's 77 tokens, T5's 256, and the context of cross-attention.
    (77, 768, 3072),
    (77, 2048, 640),
    (256, 4096, 10240),
    # Pictures: SD 1.5 at 512 x 512, SDXL at 1024 x 1024, FLUX.1.
    (4096, 320, 2560),
    (4096, 1280, 320),
    (1024, 640, 5120),
    (256, 1280, 10240),
    (1024, 1280, 10240),
    (1280, 3072, 3072),
    (1280, 3072, 12288),
]
"""Rows, features in, features out."""
RUNS = 3
"""Calls of a path when it is its turn; the first warms up."""
MULTIPLY_ADDS = 30e9
"""In a turn at most, beyond the first two calls: large products are steady."""


@dataclass
class Row:
    """One type and shape: seconds of every path in every turn."""

    type: str
    rows: int
    features_in: int
    features_out: int
    seconds: dict[str, list[float]]
    error: dict[str, float]
    of_f16: float | None = None
    """The engine's time over its own with f16 weights."""

    def median(self, path: str) -> float:
        """Seconds; not a number where there is no such path."""
        return statistics.median(self.seconds.get(path, [float("nan")]))

    def ratio(self, path: str) -> float:
        """Median over the turns of the path's time over the engine's."""
        if path not in self.seconds:
            return float("nan")
        pairs = zip(self.seconds[path], self.seconds["sdengine"], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def fastest(self) -> str:
        """The path with the lowest median."""
        return min(self.seconds, key=self.median)

    def line(self) -> str:
        """A row of the table."""
        operations = 2e-9 * self.rows * self.features_in * self.features_out
        shape = f"{self.rows} {self.features_in}->{self.features_out}"
        cells = f"{self.type:5} {shape:18} {self.median('sdengine') * 1e3:9.3f}"
        cells += f" {operations / self.median('sdengine'):8.1f}"
        for path in ("ggml", "repacked"):
            cells += f" {operations / self.median(path):9.1f} {self.ratio(path):6.2f}"
        of_f16 = float("nan") if self.of_f16 is None else self.of_f16
        return (
            f"{cells} {of_f16:7.2f} {self.error['sdengine']:8.0e} {self.error.get('ggml', 0):8.0e}"
        )


HEADINGS = (
    f"{'type':5} {'shape':18} {'ours ms':>9} {'GFLOP/s':>8} {'ggml':>9} {'ratio':>6}"
    f" {'repacked':>9} {'ratio':>6} {'of f16':>7} {'error':>8} {'ggml':>8}"
)


@dataclass
class Ops:
    """Runs products with fixed options."""

    threads: int
    isa: str
    turns: int
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def measure(self, shape: tuple[int, int, int], types: Sequence[str]) -> Iterator[Row]:
        """One shape in all types that divide its features, each type's paths in turns; f16 before quantized ones."""
        rows, features_in, features_out = shape
        x = self.random.standard_normal((rows, features_in), np.float32)
        weight = self.random.standard_normal((features_out, features_in), np.float32)
        plain = None
        for kind in types:
            if features_in % block_size(kind) == 0:
                row = self._measure(x, weight, kind)
                plain = row if kind == "f16" else plain
                if plain is not None:
                    row.of_f16 = row.median("sdengine") / plain.median("sdengine")
                yield row

    def _measure(self, x: Array, weight: Array, kind: str) -> Row:
        packed = kernels.quantize(weight, kind, weight.shape[1])
        product = (x, packed, kind, weight.shape[0])
        paths: dict[str, Callable[..., Array]] = {
            "sdengine": partial(kernels.linear, *product, isa=self.isa, threads=self.threads),
            "ggml": partial(kernels.ggml_linear, *product, threads=self.threads),
        }
        repacked = partial(kernels.ggml_linear, *product, repacked=True, threads=self.threads)
        try:
            repacked()
            paths["repacked"] = repacked
        except errors.ParameterError:
            pass  # no such form of this type
        exact = x @ kernels.dequantize(packed, kind, weight.size).reshape(weight.shape).T
        error = {name: measuring.relative_error(run(), exact) for name, run in paths.items()}
        runs = RUNS if x.shape[0] * weight.size * RUNS < MULTIPLY_ADDS else 2
        seconds: dict[str, list[float]] = {name: [] for name in paths}
        for turn in range(self.turns):
            for name in paths if turn % 2 == 0 else reversed(paths):
                taken: list[float] = []
                paths[name](repeats=runs, seconds=taken)
                seconds[name].append(statistics.median(taken[1:]))
        return Row(kind, *x.shape, weight.shape[0], seconds, error)


def summary(rows: Sequence[Row]) -> list[str]:
    """Where another path is faster by more than noise, and where quantized weights cost more than a tenth."""
    lines = []
    for row in rows:
        where = f"{row.type} {row.rows} {row.features_in}->{row.features_out}"
        fastest = row.fastest()
        if row.ratio(fastest) < 0.95:
            lines.append(f"{where}: {fastest} takes {row.ratio(fastest):.2f} of the engine's time")
        if row.of_f16 is not None and row.of_f16 > 1.1 and row.type != "f32":
            lines.append(f"{where}: {row.of_f16:.2f} of the time with f16 weights")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="auto", help=f"auto or one of {', '.join(kernels.isas())}")
    parser.add_argument("--types", default=TYPES, help="ggml types of the weights")
    parser.add_argument("--rows", default="", help="only shapes with so many rows, with commas")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    machine, before = measuring.machine(), measuring.load_average()
    measuring.bind_to_cores(arguments.threads)
    ops = Ops(arguments.threads, arguments.isa, arguments.turns)
    wanted = {int(rows) for rows in arguments.rows.split(",") if rows}
    rows: list[Row] = []
    print(HEADINGS)
    for shape in SHAPES:
        if wanted and shape[0] not in wanted:
            continue
        for row in ops.measure(shape, arguments.types.split(",")):
            rows.append(row)
            print(row.line(), flush=True)
        if arguments.json:  # after every shape: what was measured is kept
            _write(arguments, machine, before, rows)
    print("\n".join(summary(rows)))


def _write(
    arguments: argparse.Namespace,
    machine: dict[str, Any],
    before: float | None,
    rows: Sequence[Row],
) -> None:
    report = {
        "machine": machine,
        "threads": arguments.threads,
        "isa": arguments.isa,
        "load_average": {"before": before, "after": measuring.load_average()},
        "rows": [{**asdict(row), "fastest": row.fastest()} for row in rows],
        "summary": summary(rows),
    }
    measuring.write_json(arguments.json, json.loads(json.dumps(report, default=float)))


if __name__ == "__main__":
    main()
