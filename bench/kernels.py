"""Speed of the CPU kernels by operator and shape, as GFLOP/s and as a share of the processor's peak.

The peak, multiply-adds in registers times the number of threads, is measured before every single run; the share is
the median of the paired ratios. On a shared machine read the share, not the rate. Winograd's convolution exceeds 100 %,
because the operations counted are those of the direct sum. Normalizations are bound by memory; for them GB/s counts.

    python bench/kernels.py --threads 2 --types f16,q8_0 --only conv
    python bench/kernels.py --json kernels.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdengine import _core

kernels = _core.kernels
Run = Callable[..., object]
Array = npt.NDArray[np.float32]

# height = width, in channels, out channels: SD 1.5's UNet at 512 x 512, then the autoencoder's decoder.
CONVOLUTIONS = [
    (64, 4, 320),
    (64, 320, 320),
    (64, 960, 320),
    (64, 320, 4),
    (32, 640, 640),
    (32, 1920, 640),
    (16, 1280, 1280),
    (16, 2560, 1280),
    (8, 1280, 1280),
    (64, 512, 512),
    (128, 512, 512),
    (256, 256, 256),
    (512, 128, 128),
    (512, 128, 3),
]
# rows, in features, out features
LINEARS = [
    (4096, 320, 320),
    (4096, 320, 2560),
    (4096, 1280, 320),
    (1024, 640, 5120),
    (256, 1280, 10240),
    (1280, 3072, 3072),
    (1280, 3072, 12288),
    (77, 768, 3072),
    (2, 1280, 1280),
]
# query tokens, key tokens, heads, head dimension
ATTENTIONS = [
    (4096, 4096, 8, 40),
    (4096, 77, 8, 40),
    (1024, 1024, 8, 80),
    (256, 256, 8, 160),
    (64, 64, 8, 160),
    (1280, 1280, 24, 128),
    (4096, 4096, 10, 64),
    (4096, 4096, 1, 512),
]
WIDTH = 25  # of the first column
# pixels, channels
NORMS = [(4096, 320), (1024, 640), (256, 1280), (262144, 128)]


def block_size(kind: str) -> int:
    """Elements that a ggml type keeps together."""
    if kind in ("f32", "f16", "bf16"):
        return 1
    return 256 if kind.endswith(("_K", "_xs")) else 32


@dataclass
class Row:
    """One measurement."""

    name: str
    shape: str
    type: str
    milliseconds: float
    gflops: float
    share_of_peak: float
    gbytes_per_second: float


class Bench:
    """Runs operators with fixed options and collects rows."""

    def __init__(self, threads: int, isa: str, repeats: int) -> None:
        self.options: dict[str, Any] = {"threads": threads, "isa": isa}
        self.repeats = repeats
        self.unit = ""  # of arithmetic="fast", instead of the variant
        self.rng = np.random.default_rng(0)

    def units(self, types: list[str], wanted: bool) -> Iterator[Row]:
        """Linear layers and attention by what ``arithmetic="fast"`` multiplies with."""
        for unit in kernels.units() if wanted else ():
            if unit.endswith("plain"):
                continue
            bench = Bench(self.options["threads"], self.options["isa"], self.repeats)
            bench.unit = unit
            narrow = unit.startswith("bf16")
            yield from bench.linear([t for t in types if (t in ("f32", "f16", "bf16")) == narrow])
            if narrow:
                yield from bench.attention()

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def measure(
        self, name: str, shape: str, kind: str, run: Run, operations: float, floats: float
    ) -> Row:
        """Medians over the repeats after a warm-up; `operations` counts a multiply-add as two."""
        run = partial(run, **{**self.options, **({"isa": self.unit} if self.unit else {})})
        name = f"{name} {self.unit}".strip()
        run()
        shares: list[float] = []
        seconds: list[float] = []
        for _ in range(self.repeats):
            peak = kernels.peak_gflops(isa=self.options["isa"], repeats=1) * 1e9
            twice: list[float] = []
            run(seconds=twice, repeats=2)
            # The first of the two also made the system find pages for the output, which a model's
            # graph does only once.
            seconds.append(twice[1])
            shares.append(operations / seconds[-1] / (peak * self.options["threads"]))
        time = statistics.median(seconds)
        share = statistics.median(shares)
        return Row(
            name, shape, kind, time * 1e3, operations / time * 1e-9, share, floats * 4 / time * 1e-9
        )

    def conv(self, types: list[str]) -> Iterator[Row]:
        for size, inputs, outputs in CONVOLUTIONS:
            x, weight = self.normal(1, size, size, inputs), self.normal(outputs * inputs * 9)
            for kind in types:
                if weight.size % block_size(kind):
                    continue
                packed = kernels.quantize(weight, kind, weight.size)
                run = partial(kernels.conv2d, x, packed, kind, outputs)
                operations = 2.0 * size * size * weight.size
                floats = size * size * (inputs + outputs)
                shape = f"{size}x{size} {inputs}->{outputs}"
                yield self.measure("conv3x3", shape, kind, run, operations, floats)

    def linear(self, types: list[str]) -> Iterator[Row]:
        for rows, inputs, outputs in LINEARS:
            x, weight = self.normal(rows, inputs), self.normal(outputs, inputs)
            for kind in types:
                if inputs % block_size(kind):
                    continue
                packed = kernels.quantize(weight, kind, inputs)
                run = partial(kernels.linear, x, packed, kind, outputs)
                operations = 2.0 * rows * weight.size
                floats = rows * (inputs + outputs)
                shape = f"{rows} {inputs}->{outputs}"
                yield self.measure("linear", shape, kind, run, operations, floats)

    def attention(self) -> Iterator[Row]:
        for queries, keys, heads, width in ATTENTIONS:
            q, k, v = (self.normal(1, n, heads * width) for n in (queries, keys, keys))
            options = {"heads": heads, "kv_heads": heads, "scale": width**-0.5}
            run = partial(kernels.attention, q, k, v, **options)
            operations = 4.0 * heads * queries * keys * width
            shape = f"{queries}x{keys} {heads}x{width}"
            floats = 2 * (queries + keys) * heads * width
            yield self.measure("attention", shape, "f32", run, operations, floats)

    def norms(self) -> Iterator[Row]:
        for pixels, channels in NORMS:
            x, (gamma, beta) = self.normal(1, pixels, channels), self.normal(2, channels)
            shape, floats = f"{pixels} {channels}", 2 * pixels * channels
            affine = {"gamma": gamma, "beta": beta}
            group = partial(kernels.group_norm, x, groups=32, silu=True, **affine)
            yield self.measure("group_norm+silu", shape, "f32", group, 0, floats)
            layer = partial(kernels.layer_norm, x[0], **affine)
            yield self.measure("layer_norm", shape, "f32", layer, 0, floats)
            geglu = partial(kernels.geglu, x[0])
            yield self.measure("geglu", shape, "f32", geglu, 0, floats * 0.75)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="auto", help=f"auto or one of {', '.join(kernels.isas())}")
    parser.add_argument(
        "--units", action="store_true", help="also rows of arithmetic='fast', beside float32's peak"
    )
    parser.add_argument("--types", default="f32,f16,q8_0,q4_0", help="ggml types of the weights")
    parser.add_argument("--only", default="", help="only operators whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    bench = Bench(arguments.threads, arguments.isa, arguments.repeats)
    types = arguments.types.split(",")
    parts: dict[str, Iterator[Row]] = {
        "conv3x3": bench.conv(types),
        "linear": bench.linear(types),
        "attention": bench.attention(),
        "norm and geglu": bench.norms(),
        "units: linear, attention": bench.units(types, arguments.units),
    }
    rows: list[Row] = []
    print(
        f"{'operator':{WIDTH}} {'shape':22} {'type':6} {'ms':>9} {'GFLOP/s':>9} {'peak':>6} {'GB/s':>6}"
    )
    for name, part in parts.items():
        for row in part if arguments.only in name else ():
            rows.append(row)
            print(
                f"{row.name:{WIDTH}} {row.shape:22} {row.type:6} {row.milliseconds:9.3f} {row.gflops:9.1f}"
                f" {row.share_of_peak:6.0%} {row.gbytes_per_second:6.1f}",
                flush=True,
            )
    if arguments.json:
        options = {**bench.options, "repeats": arguments.repeats}
        arguments.json.write_text(json.dumps({**options, "rows": [asdict(r) for r in rows]}))


if __name__ == "__main__":
    main()
