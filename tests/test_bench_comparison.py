"""The comparison with peers, its statistics and tables, on invented figures and tiny products."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.errors import ParameterError

BENCH = Path(__file__).resolve().parent.parent / "bench"
kernels: Any = _core.kernels


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of bench/, which are scripts beside each other and no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    names = ("cases", "contenders", "comparison", "compare", "peer_engine", "peer_diffusers")
    names += ("peer_openvino", "peer_sdcpp", "ops", "scaling", "start")
    modules = {name: __import__(name) for name in names}
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(BENCH / f"{name}.py"):
            monkeypatch.delitem(sys.modules, name)
    return modules


def turn(seconds: float, **others: Any) -> dict[str, Any]:
    return {"median": seconds, "peak_memory": 1e9, **others}


@pytest.fixture
def found(bench: dict[str, ModuleType]) -> list[Any]:
    """The engine with two types, and peers: four times as slow, and slower by ever more."""
    contender = bench["contenders"].Contender
    profile = {"multiply_adds": 50e9}
    return [
        contender(
            *("sdengine", "f16", "", dict),
            [
                turn(2.0, probe=[1.0, 1.0], profile=profile, peak_gflops=[90, 100]),
                turn(4.0, peak_gflops=[200, 100]),
            ],
        ),
        contender("sdengine", "q8_0", "", dict, [turn(3.0, probe=[1.0, 1.1]), turn(3.0)]),
        contender("stable-diffusion.cpp", "q8_0", "--flash", dict, [turn(9.0), turn(12.0)]),
        contender("stable-diffusion.cpp", "f16", "--flash", dict, [turn(8.0), turn(16.0)]),
        contender("diffusers", "float32", "", dict, [turn(3.0, probe=[1.0, 1.0]), turn(8.0)]),
        contender("diffusers", "bfloat16", "", dict, [turn(1.0), turn(1.0)]),
        contender("OpenVINO", "int8", "", dict, failure="no memory"),
    ]


def test_ratios_are_paired_by_round(bench: dict[str, ModuleType], found: list[Any]) -> None:
    comparison = bench["comparison"]
    assert [c.ratio(comparison.base_of(c, found)) for c in found[:5]] == [1, 1, 3.5, 4, 1.75]
    assert comparison.best_ratio("stable-diffusion.cpp", found) == (3.5, "q8_0")
    assert comparison.best_ratio("diffusers", found) == (
        1.75,
        "float32",
    )  # bfloat16 is reported beside
    assert math.isnan(comparison.best_ratio("OpenVINO", found)[0])


def test_the_floor_is_direct_operations_at_the_peak(
    bench: dict[str, ModuleType], found: list[Any]
) -> None:
    assert bench["comparison"].peak(found) == 100
    assert bench["comparison"].floor(found) == pytest.approx(1.0)


def test_errors_are_from_diffusers_in_float32(
    bench: dict[str, ModuleType], found: list[Any]
) -> None:
    errors = [bench["comparison"].error(c, found) for c in found]
    assert errors[:2] == [0, pytest.approx(0.1 / math.sqrt(2))]
    assert math.isnan(errors[2])


def test_tables_say_what_failed(bench: dict[str, ModuleType], found: list[Any]) -> None:
    case = bench["cases"].by_name("unet-512")
    lines = bench["comparison"].table(case, found).splitlines()
    assert lines[0] == "SD 1.5 UNet, 512²: 50.0 GMAC, floor 1.00 s at 100 GFLOP/s"
    assert (
        lines[4].split() == "stable-diffusion.cpp q8_0 10.50 3.50 10% 1.00 1.00 nan --flash".split()
    )
    assert lines[-1].split() == ["OpenVINO", "int8", "no", "memory"]


def test_the_document_shows_targets_beside_what_was_reached(
    bench: dict[str, ModuleType], found: list[Any], tmp_path: Path
) -> None:
    results = bench["compare"].Results(tmp_path / "results.json", {"threads": 2})
    results.keep(bench["cases"].by_name("unet-512"), found)
    kept = json.loads((tmp_path / "results.json").read_text())
    lines = bench["comparison"].document(kept).splitlines()
    assert lines[2] == (
        "| SD 1.5 UNet, 512² | 3.50 (q8_0); 1.8 → 2.4 | 1.75 (float32); 1.45 → 1.9"
        " | not measured; 1.1 → 1.45 |"
    )
    assert "| OpenVINO | int8 | failed | | | | | | no memory |" in lines


class Invented:
    """Stands in for the contenders of a case; counts turns and stops where it is told to."""

    trials: dict[str, float]

    def __init__(self, bench: dict[str, ModuleType], stop_after: int = 99) -> None:
        self.contender = bench["contenders"].Contender
        self.stop_after, self.turns, self.trials = stop_after, [], {}

    def of(self, case: Any, facts: Any) -> list[Any]:
        def run(name: str) -> Any:
            if len(self.turns) == self.stop_after:
                raise KeyboardInterrupt
            self.turns.append(name)
            if name == "OpenVINO":
                raise RuntimeError("long story\nno memory")
            return turn(1.0)

        names = ("sdengine", "diffusers", "OpenVINO")
        return [self.contender(name, "f16", "", lambda name=name: run(name)) for name in names]


def test_a_stopped_run_goes_on_where_it_was(
    bench: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, path = bench["cases"].by_name("unet-512"), tmp_path / "results.json"
    whole = ["sdengine", "diffusers", "OpenVINO", "diffusers", "sdengine", "sdengine", "diffusers"]
    done: list[str] = []
    for stop_after in (2, 3, 99):
        invented = Invented(bench, stop_after)
        results = bench["compare"].Results(path, {"threads": 2})
        try:
            bench["compare"].run(case, invented, {}, results, rounds=3)
        except KeyboardInterrupt:
            assert stop_after != 99
        done += invented.turns
    assert done == whole  # every other round backwards, and who failed is not asked again
    assert "unet-512 round 1: OpenVINO f16: no memory" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="another run"):
        bench["compare"].Results(path, {"threads": 4})


def test_settings_are_those_of_the_fastest_trial(
    bench: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, asked = bench["cases"].by_name("unet-768"), []

    def child(script: str, options: list[str], threads: int, variables: Any, limit: float) -> Any:
        asked.append(options)
        if "--convert" in options:
            raise RuntimeError("Traceback\nno space left")
        if "--channels-last" in options:
            raise RuntimeError("no memory")
        return turn(3.0 - ("--flash" in options) + ("--direct" in options))

    monkeypatch.setattr(bench["contenders"].measuring, "child", child)
    monkeypatch.setattr(bench["contenders"].Case, "file", lambda *_: Path("model"))
    field = bench["contenders"].Field(2, bench["contenders"].LIMITS["avx2"])
    everybody = field.of(
        case, {"stable-diffusion.cpp": {}, "diffusers": {}, "OpenVINO": {"bf16": True}}
    )
    assert [(c.key, c.settings) for c in everybody] == [
        ("sdengine f16", ""),
        ("sdengine q8_0", ""),
        ("stable-diffusion.cpp f16", "--flash"),
        ("stable-diffusion.cpp q8_0", "--flash"),
        ("diffusers float32", ""),
        ("OpenVINO f16", ""),
    ]
    assert everybody[-1].failure == "not converted: no space left"
    sizes = {("--dtype" in o, o[o.index("--size") + 1]) for o in asked if "--size" in o}
    assert sizes == {(False, "512"), (True, "768")}  # diffusers' layout depends on the size
    before = len(asked)
    everybody[3].run()
    assert asked[-1][2:] == ["--threads", "2", "--flash", "--weight-type", "q8_0"]
    field.of(case, {"stable-diffusion.cpp": {}})
    assert len(asked) == before + 1  # trials are made once
    assert (
        "diffusers sd15 denoiser 768 --dtype float32 --channels-last: inf s"
        in capsys.readouterr().out
    )


def test_a_peer_that_is_not_installed_is_left_out(
    bench: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def child(script: str, *_: Any) -> Any:
        if script == "peer_sdcpp.py":
            raise RuntimeError("Traceback\nModuleNotFoundError: no such thing")
        return {"version": "1"}

    monkeypatch.setattr(bench["contenders"].measuring, "child", child)
    facts = bench["contenders"].Field(1, {}).facts(["sdengine", "stable-diffusion.cpp"])
    assert facts == {"sdengine": {"version": "1"}}
    said = capsys.readouterr().out
    assert said == "stable-diffusion.cpp is left out: ModuleNotFoundError: no such thing\n"


def test_cases_are_what_the_networks_read(bench: dict[str, ModuleType]) -> None:
    cases = bench["cases"].CASES
    assert len({case.name for case in cases}) == len(cases)
    given = {case.name: {k: v.shape for k, v in case.inputs().items()} for case in cases}
    assert given["vae-1024"] == {"latents": (1, 4, 128, 128)}
    assert given["unet-256"] == {"latents": (1, 4, 32, 32), "context": (1, 77, 768)}
    assert given["sdxl-1024"]["pooled"] == (1, 1280)
    assert given["flux-512"] == {
        "latents": (1, 16, 64, 64),
        "context": (1, 256, 4096),
        "pooled": (1, 768),
    }
    for case in cases:
        tensors = bench["peer_diffusers"].arguments_of(case)
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_patches_of_flux_are_laid_out_as_latents_again(bench: dict[str, ModuleType]) -> None:
    case, peer = bench["cases"].by_name("flux-512"), bench["peer_diffusers"]
    packed = peer.arguments_of(case)["hidden_states"]
    assert packed.shape == (1, 1024, 64)
    latents = peer.comparable(case, packed.numpy())
    np.testing.assert_array_equal(latents, case.inputs()["latents"])


def test_peaks_are_added_over_threads(
    bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "peak_gflops", lambda isa: {"auto": 10.0, "avx2": 7.0}[isa])
    assert bench["peer_engine"].peak_gflops(3) == 30
    monkeypatch.setenv("SDENGINE_CPU", "avx2")
    assert bench["peer_engine"].peak_gflops(2) == 14


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0", "q4_K"])
@pytest.mark.parametrize("threads", [1, 2])
def test_ggml_computes_the_same_product(kind: str, threads: int) -> None:
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(shape, np.float32) for shape in ((5, 256), (24, 256)))
    packed = kernels.quantize(weight, kind, 256)
    exact = x @ kernels.dequantize(packed, kind, weight.size).reshape(weight.shape).T
    seconds: list[float] = []
    found = kernels.ggml_linear(x, packed, kind, 24, threads=threads, repeats=3, seconds=seconds)
    limit = 1e-6 if kind == "f32" else 2e-2  # ggml rounds activations to the weights' kind
    assert np.linalg.norm(found - exact) <= limit * np.linalg.norm(exact)
    assert len(seconds) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "q9_9"}, "unknown ggml type 'q9_9'"),
        ({"type": "q4_K"}, "the features are not whole blocks of q4_K"),
        ({"out_features": 5}, "the weight has other than 640 bytes"),
        ({"threads": 0}, "at least one feature, thread and repeat"),
        ({"repacked": True}, "f32 weights have no repacked form here"),
    ],
)
def test_ggml_is_not_given_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    given = {"weight": bytes(4 * 32 * 4), "type": "f32", "out_features": 4} | options
    with pytest.raises(ParameterError, match=message):
        kernels.ggml_linear(np.zeros((2, 32), np.float32), **given)


def test_products_are_compared_in_turns(bench: dict[str, ModuleType]) -> None:
    ops = bench["ops"].Ops(threads=1, isa="auto", turns=3)
    rows = list(ops.measure((3, 96, 16), ["f16", "q8_0", "q4_K"]))
    assert [row.type for row in rows] == ["f16", "q8_0"]  # 96 is not whole blocks of q4_K
    assert all(len(seconds) == 3 for row in rows for seconds in row.seconds.values())
    assert rows[0].of_f16 == 1
    assert rows[1].error["sdengine"] < 1e-6 < rows[1].error["ggml"] < 1e-2
    assert len(rows[1].line().split()) == len(bench["ops"].HEADINGS.split()) - 1  # "ours ms" is one


def test_products_that_lose_are_named(bench: dict[str, ModuleType]) -> None:
    row = bench["ops"].Row
    rows = [
        row("f16", 1, 64, 32, {"sdengine": [4.0, 4.0], "ggml": [1.0, 3.0]}, {}, of_f16=1.0),
        row(
            "q8_0",
            1,
            64,
            32,
            {"sdengine": [5.0], "ggml": [4.9], "repacked": [9.0]},
            {},
            of_f16=1.25,
        ),
    ]
    assert bench["ops"].summary(rows) == [
        "f16 1 64->32: ggml takes 0.50 of the engine's time",
        "q8_0 1 64->32: 1.25 of the time with f16 weights",
    ]


def test_operators_that_threads_do_not_help_are_serial(bench: dict[str, ModuleType]) -> None:
    scaling = bench["scaling"]
    one = [["conv2d", 4.0], ["concat", 1.0], ["conv2d", 4.0], ["scale", 0.5]]
    four = [["conv2d", 1.0], ["concat", 1.0], ["conv2d", 1.5], ["scale", 0.5]]
    assert scaling.serial_shares(one, four) == {"concat": 0.25, "scale": 0.125}
    results = [
        {"size": 64, "threads": t, "median": s, "peak_memory": 1e9, "operators": operators}
        for t, s, operators in ((1, 9.5, one), (4, 4.0, four))
    ]
    scaling.add_shares(results)
    assert results[1]["serial_share"] == 0.375
    assert "operators" not in results[0]
    assert scaling.table(results).splitlines()[2].split()[:3] == ["64", "4", "4.00"]
    with pytest.raises(ValueError, match="different operators"):
        scaling.serial_shares(one, four[1:])


def test_plots_are_the_same_for_the_same_figures(
    bench: dict[str, ModuleType], tmp_path: Path
) -> None:
    results = [
        {"size": size, "threads": threads, "median": size / threads}
        for size in (256, 512)
        for threads in (1, 2)
    ]
    drawn = [bench["scaling"].plot({"results": results}, tmp_path / name) for name in "ab"]
    assert [path.name for path in drawn[0]] == ["scaling-cores.svg", "scaling-size.svg"]
    for first, second in zip(*drawn, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert b"<svg" in first.read_bytes()


def test_an_import_that_fails_says_why(bench: dict[str, ModuleType]) -> None:
    importing = bench["start"].importing
    assert "no_such_thing" in importing("import no_such_thing", 1)["failure"]
    assert 0 < importing("import json", 2)["median"] < 60


def test_types_that_are_measured_later_join_those_in_the_file(
    bench: dict[str, ModuleType], found: list[Any], tmp_path: Path
) -> None:
    case, path = bench["cases"].by_name("unet-512"), tmp_path / "results.json"
    bench["compare"].Results(path, {"threads": 2}).keep(case, found[2:])
    bench["compare"].Results(path, {"threads": 2}).keep(case, found[:2])
    kept = json.loads(path.read_text())["cases"]["unet-512"]
    assert [c.key for c in bench["comparison"].contenders_of(kept)] == [c.key for c in found]
