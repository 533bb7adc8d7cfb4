"""LoRAs in use: switched between calls, scheduled, named in prompts, recommended, converted, refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine import Lora
from sdengine.adapters import as_loras, find_applied, read_applied
from sdengine.errors import FormatError, ParameterError, UnwiseWarning, WeightsError
from sdengine.metadata import format_parameters, parse_parameters
from sdengine.options import restored
from tests.parity.conftest import relative_error
from tests.unet_models import build_unet, tiny_folder

from .files import ATTENTION, CONVOLUTIONS, State, kohya, lora, randn, write

SHORT: dict[str, Any] = {
    **{"steps": 4, "seed": 7, "width": 64, "height": 64},
    **{"sampler": "euler", "guidance_scale": 2.0},
}
PROMPT = "a red circle"
LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"

NORM = "lora_unet_down_blocks_0_resnets_0_norm1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("sd1") / "model", "sd1", seed=3)


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return build_unet("sd1", 3)


@pytest.fixture(scope="module")
def lora_dir(unet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    rename = kohya("lora_unet_")
    encoder = {
        f"{LAYER}.lora_down.weight": randn((2, 64), 1),
        f"{LAYER}.lora_up.weight": randn((64, 2), 2),
    }
    write(folder / "ink.safetensors", lora(unet, ATTENTION, rename, seed=1) | encoder)
    (folder / "more").mkdir()
    write(folder / "more" / "wide.safetensors", lora(unet, CONVOLUTIONS, rename, rank=50, seed=2))
    write(folder / "lcm-lora-sdv1-5.safetensors", lora(unet, ATTENTION, rename, seed=3))
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path, lora_dir: Path) -> sdengine.Pipeline:
    return sdengine.load(folder, lora_dir=lora_dir)


def latents(pipe: sdengine.Pipeline, prompt: str = PROMPT, **options: Any) -> np.ndarray:
    return pipe.generate(prompt, **{**SHORT, **options}).latents


def test_switching_leaves_no_trace_and_builds_no_graph_in_vain(
    pipe: sdengine.Pipeline, lora_dir: Path
) -> None:
    ink, wide = lora_dir / "ink.safetensors", lora_dir / "more" / "wide.safetensors"
    before = latents(pipe)
    first = latents(pipe, loras=[(ink, 0.8)])
    built = pipe.graphs_built["unet"]
    assert relative_error(latents(pipe, loras=[(ink, 0.4)]), first) > 1e-4
    assert pipe.graphs_built["unet"] == built  # other scales are other numbers in the same graph
    assert np.array_equal(latents(pipe, loras=[(ink, 0.8)]), first)
    both = latents(pipe, loras=[(ink, 0.8), (wide, 0.5)])
    assert relative_error(both, first) > 1e-4
    assert np.array_equal(latents(pipe, loras=[(ink, 0.0), (wide, 0)]), before)
    assert np.array_equal(latents(pipe), before)
    assert pipe.denoiser.adapter_bytes == 0


def test_set_loras_applies_to_every_call(
    folder: Path, lora_dir: Path, pipe: sdengine.Pipeline
) -> None:
    ink = lora_dir / "ink.safetensors"
    expected = latents(pipe, loras=[(ink, 0.8, 0.3)])
    loaded = sdengine.load(folder, loras=[(ink, 0.8, 0.3)])
    assert np.array_equal(latents(loaded), expected)
    assert loaded.loras == (Lora(ink, 0.8, 0.3),)
    assert not np.array_equal(latents(loaded, loras=[]), expected)
    loaded.set_loras([])
    assert np.array_equal(latents(loaded), latents(pipe))


@pytest.mark.parametrize(
    ("tag", "scales"),
    [
        ("<lora:ink:0.8>", (0.8, 0.8)),
        ("<lora:INK:0.5:0.8>", (0.8, 0.5)),
        ("<lora:ink>", (1.0, 1.0)),
    ],
)
def test_tags_in_prompts(
    tag: str, scales: tuple[float, float], pipe: sdengine.Pipeline, lora_dir: Path
) -> None:
    expected = latents(pipe, loras=[(lora_dir / "ink.safetensors", *scales)])
    assert np.array_equal(latents(pipe, PROMPT + tag), expected)


def test_embeddings_are_merged(pipe: sdengine.Pipeline, tmp_path: Path) -> None:
    words = pipe.config["text_encoder"]["vocab_size"]
    down, up = randn((2, 64), 1, 0.2), randn((words, 2), 2, 0.2)
    name = "lora_te_text_model_embeddings_token_embedding"
    pair = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    contexts = []
    for number, state in enumerate((pair, {f"{name}.diff": up @ down}, {})):
        pipe.set_loras([write(tmp_path / f"{number}.safetensors", state)] if state else [])
        contexts.append(pipe.encode_prompt(PROMPT).context)
    assert relative_error(contexts[0], contexts[1]) <= 1e-6
    assert relative_error(contexts[0], contexts[2]) > 1e-3


def test_what_a_picture_says_makes_it_again(pipe: sdengine.Pipeline, lora_dir: Path) -> None:
    ink, wide = lora_dir / "ink.safetensors", lora_dir / "more" / "wide.safetensors"
    third = 1 / 3
    loras = [(ink, third, 0.3), Lora(wide, [0.5, 0.4, third, 0.2], start=0.25, end=0.9)]
    prompt = PROMPT + " <lora:lcm-lora-sdv1-5:0.1>"
    result = pipe.generate(prompt, loras=loras, **SHORT)
    found = parse_parameters(format_parameters(result.metadata[0]))
    again = find_applied(found["applied_loras"], folder=lora_dir)
    assert [lora.path for lora in again[:2]] == [ink, wide]
    repeated = pipe.generate(found["prompt"], loras=again, **restored(found))
    assert np.array_equal(repeated.latents, result.latents)
    # The tag of the prompt finds its file as well, and decides.
    assert np.array_equal(latents(pipe, prompt, loras=again[:2]), result.latents)


def test_what_is_not_a_list_of_loras() -> None:
    for text in ("ink", "ink:", "ink:1, wide", ":1 [2"):
        with pytest.raises(sdengine.ParameterError, match="name:scale"):
            read_applied(text)
    with pytest.raises(sdengine.ParameterError, match=r"not found: a\.b, c\. Give their folder"):
        find_applied("a.b:1, c:-0.5:2")
    assert find_applied("") == read_applied("") == ()


def test_one_lora_needs_no_list() -> None:
    assert as_loras(("ink.gguf", 0.5)) == as_loras([("ink.gguf", 0.5)]) == (Lora("ink.gguf", 0.5),)
    assert as_loras(("ink.gguf", "wide.gguf")) == (Lora("ink.gguf"), Lora("wide.gguf"))


def test_a_picture_says_what_was_applied(pipe: sdengine.Pipeline, lora_dir: Path) -> None:
    ink, wide = lora_dir / "ink.safetensors", lora_dir / "more" / "wide.safetensors"
    loras = [(ink, 0.8, 0.3), Lora(wide, [0.5, 0.4, 0.3, 0.2], start=0.25)]
    result = pipe.generate(PROMPT, loras=loras, **SHORT)
    assert result.metadata[0]["applied_loras"] == "ink:0.8:0.3, wide:0.5/0.4/0.3/0.2:0.5 [0.25-1]"
    assert "applied_loras" not in pipe.generate(PROMPT, **SHORT).metadata[0]


def test_a_tag_decides_over_a_given_scale(pipe: sdengine.Pipeline, lora_dir: Path) -> None:
    ink = lora_dir / "ink.safetensors"
    expected = latents(pipe, loras=[(ink, 0.6)])
    assert np.array_equal(latents(pipe, f"{PROMPT}<lora:ink:0.6>", loras=[(ink, 2.0)]), expected)


def test_an_unknown_name_lists_what_is_there(pipe: sdengine.Pipeline, folder: Path) -> None:
    with pytest.raises(ParameterError, match=r"'oil'.*ink, lcm-lora-sdv1-5, more/wide, wide"):
        pipe.generate("a cat <lora:oil:1>", **SHORT)
    with pytest.raises(ParameterError, match="'../ink'"):
        pipe.generate("a cat <lora:../ink:1>", **SHORT)
    with pytest.raises(ParameterError, match="lora_dir="):
        sdengine.load(folder).generate("a cat <lora:ink:1>", **SHORT)


def test_schedules_of_scales(pipe: sdengine.Pipeline, lora_dir: Path) -> None:
    ink = lora_dir / "ink.safetensors"
    off = {"text_encoder_scale": 0.0}
    listed = latents(pipe, loras=[Lora(ink, [0.0, 0.0, 0.9, 0.9], **off)])
    part = latents(pipe, loras=[Lora(ink, 0.9, start=0.5, **off)])
    whole = latents(pipe, loras=[Lora(ink, 0.9, **off)])
    assert np.array_equal(listed, part)
    assert relative_error(part, whole) > 1e-4
    assert relative_error(part, latents(pipe)) > 1e-4
    with pytest.raises(ParameterError, match="2 scales for 4 steps"):
        pipe.generate(PROMPT, loras=[Lora(ink, [1, 0])], **SHORT)


def test_runs_with_different_loras_take_turns_and_can_be_pickled(
    pipe: sdengine.Pipeline, lora_dir: Path
) -> None:
    loras = [(lora_dir / "ink.safetensors", 0.8)]
    expected = [latents(pipe, loras=loras), latents(pipe)]
    runs = [pipe.start(PROMPT, loras=loras, **SHORT), pipe.start(PROMPT, **SHORT)]
    for _ in range(2):
        for run in runs:
            run.step()
    runs = [pickle.loads(pickle.dumps(run)) for run in runs]
    while not runs[0].done:
        for run in runs:
            run.step()
    for run, wanted in zip(runs, expected, strict=True):
        assert np.array_equal(run.latents, wanted)


def test_a_run_ends_without_its_file(
    pipe: sdengine.Pipeline, lora_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((lora_dir / "ink.safetensors").read_bytes())
    run = pipe.start(PROMPT, loras=[(copy, 0.8)], **SHORT)
    run.step()
    copy.unlink()
    pipe.start(PROMPT, **SHORT).step()
    while not run.done:
        run.step()
    expected = latents(pipe, loras=[(lora_dir / "ink.safetensors", 0.8)])
    assert np.array_equal(run.latents, expected)


def test_recipes_apply_themselves(pipe: sdengine.Pipeline) -> None:
    given = {k: v for k, v in SHORT.items() if k in ("seed", "width", "height")}
    run = pipe.start(f"{PROMPT} <lora:lcm-lora-sdv1-5:1>", **given)
    assert (run.parameters.sampler, run.parameters.steps) == ("lcm", 4)
    assert run.parameters.guidance.scale < 3
    run = pipe.start(f"{PROMPT} <lora:lcm-lora-sdv1-5:1>", steps=6, **given)
    assert run.parameters.steps == 6
    assert pipe.start(PROMPT, **given).parameters.sampler != "lcm"


@pytest.mark.parametrize("weight_type", ["f32", "q8_0"])
def test_convert_merges_for_good(
    weight_type: str, folder: Path, lora_dir: Path, tmp_path: Path, pipe: sdengine.Pipeline
) -> None:
    loras = [(lora_dir / "ink.safetensors", 0.8, 0.3), (lora_dir / "more/wide.safetensors", 0.5)]
    sdengine.convert(folder, tmp_path / "merged.gguf", weight_type, loras=loras)
    found = latents(sdengine.load(tmp_path / "merged.gguf"))
    expected = latents(pipe, loras=loras)
    limit = {"f32": 1e-4, "q8_0": 0.05}[weight_type]
    assert relative_error(found, expected) <= limit
    assert relative_error(latents(pipe), expected) > 2 * limit


@pytest.mark.parametrize(
    ("name", "sampler", "steps"),
    [
        ("Hyper-SD15-8steps-CFG-lora", None, 8),
        ("Hyper-SD15-1step-lora", "tcd", 1),
        ("TCD-SD15-LoRA", "tcd", 4),
    ],
)
def test_recipes_of_other_publishers(
    pipe: sdengine.Pipeline, lora_dir: Path, tmp_path: Path, name: str, sampler: str, steps: int
) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes((lora_dir / "ink.safetensors").read_bytes())
    used = pipe.start(PROMPT, seed=7, width=64, height=64, loras=[path]).parameters
    assert used.steps == steps
    assert sampler in (None, used.sampler)
    assert used.guidance.scale <= pipe.model.defaults.guidance


# ------------------------------ bad input
def broken(state: State, ending: str, value: torch.Tensor) -> State:
    name = next(name for name in state if name.endswith(ending))
    return {**state, name: value}


def test_bad_tensors(pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path) -> None:
    good = lora(unet, ("to_q",), kohya("lora_unet_"))
    up = next(tensor for name, tensor in good.items() if name.endswith("up.weight"))
    nothing = {n: t[:0] if n.endswith("down.weight") else t[:, :0] for n, t in good.items()}
    cases: list[tuple[State, str]] = [
        (broken(good, "up.weight", up * torch.nan), "NaN"),
        (broken(good, "up.weight", up[:-1]), "'up' is "),
        (broken(good, "down.weight", randn((4, 63), 1)), "'down' is "),
        ({n: t for n, t in good.items() if "down" not in n}, "'down'"),
        (nothing, "rank is 0"),
        ({"lora_unet_x.alpha": torch.ones(3)}, "none of its 1 tensors"),
        ({**good, next(iter(good)).split(".")[0] + ".alpha": torch.ones(2)}, "expected one"),
        ({**good, next(iter(good)).split(".")[0] + ".diff_b": torch.ones(2)}, "to_q.bias"),
        (
            {
                f"{NORM}.lora_up.weight": randn((64, 2), 1),
                f"{NORM}.lora_down.weight": randn((2, 1), 1),
            },
            "only matrices",
        ),
        (  # conv_in has 4 * 9 inputs: 6 * 6 would be as many, but no product of channels
            {
                "lora_unet_conv_in.lokr_w1": randn((8, 6), 1),
                "lora_unet_conv_in.lokr_w2": randn((8, 6), 1),
            },
            "the product of 'w1'",
        ),
    ]
    before = latents(pipe)
    for number, (state, message) in enumerate(cases):
        path = write(tmp_path / f"{number}.safetensors", state)
        with pytest.raises(WeightsError, match=message):
            pipe.set_loras([path])
        assert pipe.loras == ()
    assert np.array_equal(latents(pipe), before)


@pytest.mark.parametrize(
    ("name", "shape", "family"),
    [
        ("lora_unet_output_blocks_3_1_transformer_blocks_0_attn2_to_k", 2048, "Diffusion XL"),
        ("lora_unet_down_blocks_3_attentions_0_transformer_blocks_0_attn2_to_k", 768, "1.x"),
        ("lora_unet_double_blocks_0_img_attn_qkv", 3072, "FLUX"),
        ("transformer.transformer_blocks.0.attn.add_q_proj", 1536, "Stable Diffusion 3"),
    ],
)
def test_another_family_is_named(
    name: str, shape: int, family: str, pipe: sdengine.Pipeline, tmp_path: Path
) -> None:
    state = {
        f"{name}.lora_down.weight": randn((2, shape), 1),
        f"{name}.lora_up.weight": randn((8, 2), 1),
    }
    with pytest.raises(WeightsError, match=rf"seems to be for .*{family}"):
        pipe.set_loras([write(tmp_path / "a.safetensors", state)])


def test_what_has_no_meaning_is_reported(
    pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    state = lora(unet, ("to_q",), kohya("lora_unet_")) | {
        "lora_unet_x.lora_up.weight": randn((1, 1), 1)
    }
    with pytest.warns(UnwiseWarning, match=r"'lora_unet_x\.lora_up\.weight'"):
        pipe.set_loras([write(tmp_path / "a.safetensors", state)])
    pipe.set_loras(None)


def test_bad_arguments(pipe: sdengine.Pipeline, lora_dir: Path, tmp_path: Path) -> None:
    ink = lora_dir / "ink.safetensors"
    for given, message in (
        ([tmp_path / "none.safetensors"], "no such LoRA"),
        ([tmp_path], "holds no adapter"),
        ([(ink, "strong")], "scale"),
        ([(ink, float("nan"))], "scale"),
        ([(ink, 1e9)], "scale"),
        ([(ink, 1, 1, 1, 1)], "a LoRA is"),
        ([7], "a LoRA is"),
        (7, "loras must be a list"),
        ([ink] * 65, "at most 64"),
    ):
        with pytest.raises(ParameterError, match=message):
            pipe.set_loras(given)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="start must come first"):
        Lora(ink, start=0.5, end=0.5)
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(FormatError):
        pipe.set_loras([tmp_path / "text.safetensors"])
    with pytest.raises(ParameterError, match="lora_dir"):
        sdengine.load(pipe.model.path, lora_dir=tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", Lora("a.safetensors")),
        ("a.safetensors:0.8", Lora("a.safetensors", 0.8)),
        ("C:/x/a.pt:-1:.5", Lora("C:/x/a.pt", -1.0, 0.5)),
    ],
)
def test_the_command_lines_spelling(text: str, expected: Lora) -> None:
    assert sdengine.adapters.parse_lora(text) == expected
