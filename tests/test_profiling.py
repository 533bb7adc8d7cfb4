"""Profiles: where time goes, without a change of the result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sdengine
from sdengine.api import DEMO_MODEL
from sdengine.cli import main
from sdengine.errors import OutputError, ParameterError
from sdengine.profiling import Operator, Profile, block_of, profiled

SHORT = {"width": 64, "height": 64, "steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    return sdengine.load(DEMO_MODEL, prompt_cache=False)


@pytest.fixture(scope="module")
def profile(pipe: sdengine.Pipeline) -> Profile:
    with profiled(pipe) as recorded:
        pipe.generate("a red circle", **SHORT)
    return recorded


def test_the_picture_is_the_same(pipe: sdengine.Pipeline) -> None:
    plain = pipe.generate("a red circle", **SHORT).latents
    with profiled(pipe):
        recorded = pipe.generate("a red circle", **SHORT).latents
    assert np.array_equal(plain, recorded)
    assert np.array_equal(plain, pipe.generate("a red circle", **SHORT).latents)


def test_every_network_that_ran_is_in_it(profile: Profile) -> None:
    assert {operator.network for operator in profile.operators} == {
        "text_encoder",
        "unet",
        "vae_decoder",
    }
    kinds = {share.name for share in profile.shares("kind")}
    assert {"conv2d", "linear", "attention", "group_norm", "layer_norm", "feed_forward"} <= kinds
    begins = [operator.begin for operator in profile.operators]
    assert begins == sorted(begins)


def test_multiply_adds_are_those_of_the_layers(pipe: sdengine.Pipeline) -> None:
    size, count = 16, 1
    latents = np.zeros((count, 4, size, size), np.float32)
    with profiled(pipe) as recorded:
        pipe.predict(latents, 500, pipe.encode_prompt("a"))
    first = next(o for o in recorded.operators if o.network == "unet" and o.kind == "conv2d")
    shapes = {b.name: b.entry.shape for b in pipe.model.components["unet"].bindings}
    assert first.block == "conv_in"
    assert first.multiply_adds == size * size * int(np.prod(shapes["conv_in.weight"]))
    counted = {o.kind for o in recorded.operators if o.multiply_adds}
    assert counted == {"conv2d", "linear", "attention", "feed_forward"}
    assert all(o.multiply_adds for o in recorded.operators if o.kind == "feed_forward")


def test_groups_add_up(profile: Profile) -> None:
    whole = sum(operator.seconds for operator in profile.operators)
    for by in ("kind", "block", "network"):
        shares = profile.shares(by)
        assert sum(share.seconds for share in shares) == pytest.approx(whole)
        assert sum(share.part for share in shares) == pytest.approx(1)
        assert sum(share.count for share in shares) == len(profile.operators)
        assert len(profile.table(by).splitlines()) == len(shares) + 1


def test_rates() -> None:
    one = Operator("unet", "linear", "a.0", 0.0, 0.5, 10**9, 8)
    share = Profile(8.0, [one, one]).shares("kind")[0]
    assert (share.gflops, share.of_peak, share.count) == (4.0, 0.5, 2)


@pytest.mark.parametrize(
    ("parameter", "block"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight", "down_blocks.0.attentions.1"),
        ("transformer_blocks.17.attn.to_q.weight", "transformer_blocks.17"),
        ("mid_block.resnets.0.conv1.weight", "mid_block.resnets.0"),
        ("encoder.layers.3.mlp.fc1.weight", "encoder.layers.3"),
        ("conv_in.weight", "conv_in"),
        ("", ""),
    ],
)  # fmt: skip
def test_blocks(parameter: str, block: str) -> None:
    assert block_of(parameter) == block


def test_an_error_ends_the_recording(pipe: sdengine.Pipeline) -> None:
    with pytest.raises(ParameterError), profiled(pipe):
        pipe.generate("a", width=3)
    with profiled(pipe) as recorded:
        pass
    pipe.generate("a red circle", **SHORT)
    assert recorded.operators == []


def test_a_trace(profile: Profile, tmp_path: Path) -> None:
    profile.write_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(events) == len(profile.operators)
    assert {"name", "ph", "ts", "dur", "pid", "tid"} <= events[0].keys()
    with pytest.raises(OutputError):
        profile.write_trace(tmp_path / "no folder" / "trace.json")


def test_no_such_grouping(profile: Profile) -> None:
    with pytest.raises(ParameterError, match="colour"):
        profile.shares("colour")  # type: ignore[arg-type]


def test_the_command(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    options = ["bench", "--width", "64", "--height", "64", "--steps", "1", "--repeat", "1"]
    shown = CliRunner().invoke(main, [*options, "--profile", "--trace", str(trace)])
    assert shown.exit_code == 0, shown.output
    assert "conv2d" in shown.output
    assert "GFLOP/s" in shown.output
    assert trace.is_file()
    told = CliRunner().invoke(main, [*options, "--profile", "--json"])
    assert set(json.loads(told.stdout)["profile"]) == {"network", "kind", "block"}
