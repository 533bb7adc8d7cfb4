"""One measurement of the engine; a child of ``compare.py``."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cases
import measuring
import synthetic


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load and evaluate in this process; the processor's peak before and after."""
    import sdengine

    case = cases.by_name(arguments.case)
    path = case.file(arguments.weight_type)
    measuring.warm(path)
    peaks = [peak_gflops(arguments.threads)]
    started = time.perf_counter()
    pipe = sdengine.load(
        path,
        threads=arguments.threads,
        arithmetic=arguments.arithmetic,
        prompt_cache=False,
        **synthetic.beside(path),
    )
    load = time.perf_counter() - started
    work = _work(pipe, case, arguments.size)
    loading = measuring.forget_peak()
    report, output = cases.times(work, case)
    report |= {"load": round(load, 3), **loading, **measuring.evaluating_peak()}
    report["probe"] = measuring.probe(output)
    peaks.append(peak_gflops(arguments.threads))
    report["peak_gflops"] = [round(peak, 1) for peak in peaks]
    if arguments.profile:
        report["profile"] = _profile(pipe, work)
    return report


def _work(pipe: Any, case: cases.Case, size: int) -> Callable[[], measuring.Array]:
    import sdengine

    given = case.inputs(size)
    if case.part == "decoder":
        return lambda: pipe.decode_latents(given["latents"], output_type="numpy", tile=0)
    cond = sdengine.Conditioning(given["context"], pooled=given.get("pooled"))
    return lambda: pipe.predict(given["latents"], measuring.TIMESTEP, cond)


def _profile(pipe: Any, work: Callable[[], object]) -> dict[str, Any]:
    """Direct operations of one evaluation, and where its time goes."""
    from sdengine.profiling import profiled

    with profiled(pipe) as profile:
        work()
    return {
        "multiply_adds": sum(operator.multiply_adds for operator in profile.operators),
        "kinds": {
            share.name: {"seconds": round(share.seconds, 4), "gflops": round(share.gflops, 1)}
            for share in profile.shares("kind")
        },
        "blocks": {
            share.name: round(share.seconds, 4) for share in profile.shares("block") if share.gflops
        },
    }


def peak_gflops(threads: int) -> float:
    """Multiply-adds in registers, of so many threads at once, in 10^9 operations a second."""
    from sdengine import _core

    isa = os.environ.get("SDENGINE_CPU", "auto")
    with ThreadPoolExecutor(threads) as pool:
        rates = pool.map(lambda _: _core.kernels.peak_gflops(isa=isa), range(threads))
        return sum(rates)


def facts() -> dict[str, Any]:
    """Which version, and which kernels run."""
    import sdengine
    from sdengine import _core

    limit = os.environ.get("SDENGINE_CPU")
    return {"version": sdengine.__version__, "instructions": limit or _core.kernels.isas()[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", action="store_true", help="print only the version")
    parser.add_argument("--case", default="unet-512")
    parser.add_argument("--size", type=int, help="other than the case's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weight-type", default=synthetic.PLAIN)
    parser.add_argument("--arithmetic", default="standard")
    parser.add_argument("--profile", action="store_true", help="one more evaluation, profiled")
    arguments = parser.parse_args()
    print("\n" + json.dumps(facts() if arguments.facts else measure(arguments)))


if __name__ == "__main__":
    main()
