"""Samplers converge to the exact answer, at the order that they are documented to have."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sdengine.sampling import SAMPLERS

ROOT = Path(__file__).resolve().parent.parent.parent
# Never without noise, or (er_sde) not on the way of the ODE without it.
NOISY = {"ddpm", "er_sde", "euler_a_cfg_pp", "lcm", "tcd"}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        return __import__("sampler_convergence")
    finally:
        sys.path.pop(0)


def test_orders(bench: ModuleType) -> None:
    steps = (16, 32, 64)
    for name, (_, _, documented) in bench.RUNS.items():
        order = bench.fitted_order(steps, [bench.error(name, n) for n in steps])
        # Orders above 2 reach float32's rounding soon, and errors of either sign on their way.
        assert order > documented - 0.25, (name, order)
        assert order < documented + 0.5 or documented > 2 or "ipndm_v" in name, (name, order)


def test_every_sampler_without_noise_is_measured(bench: ModuleType) -> None:
    assert {sampler for sampler, _, _ in bench.RUNS.values()} == {*SAMPLERS} - NOISY


def test_the_documentation_says_the_same(bench: ModuleType) -> None:
    section = (ROOT / "docs" / "sampling.md").read_text().split("\n## ")[1]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    documented = {
        name: cells[2].strip() for cells in rows for name in re.findall(r"`([^`]+)`", cells[0])
    }
    assert documented.keys() == {*SAMPLERS}
    for name, order in documented.items():
        expected = {
            str(o) for s, options, o in bench.RUNS.values() if s == name and "order" not in options
        }
        assert {order} == (expected or {""}), name


def test_the_plot_asks_for_matplotlib(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    imported = builtins.__import__

    def missing(name: str, *rest: Any) -> ModuleType:
        if name == "matplotlib":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        bench.plot(tmp_path / "plot.png", {}, [])


def test_costs_are_of_all_steps_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    cost = __import__("sampling_cost")
    for name, evaluations in (("euler_cfg_pp", 1), ("dpm++sde", 2)):
        seconds, found = cost.steps_of(name, 4, {})
        assert len(seconds) == 3
        assert min(seconds) > 0
        assert found == evaluations
