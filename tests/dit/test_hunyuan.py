"""Hunyuan-DiT 1.1 and 1.2 against diffusers: their denoiser and whole pipelines."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

import sdengine
from sdengine import _core
from sdengine.conditioning import Conditioning
from sdengine.errors import ParameterError
from sdengine.keys import hunyuan_dit
from tests.parity.conftest import relative_error
from tests.parity.dit import native, noise, tiny

from .hunyuan_models import BERT_WIDTH, NEW, OLD, T5_WIDTH, tiny_hunyuan_folder

LIMIT = 5e-6
TABLES = (hunyuan_dit.ORIGINAL, hunyuan_dit.DIFFUSERS)
SHORT = {"text_len": 5, "text_len_t5": 7}
VARIANTS: dict[str, dict[str, Any]] = {
    "1.1": OLD | SHORT,
    "1.2": NEW | SHORT,
    "no-variances": NEW | SHORT | {"learn_sigma": False},
    "two-blocks": OLD | SHORT | {"num_layers": 2},
}
BASE = 32
LENGTHS = ((5, 7), (2, 3))
"""Tokens of the two texts, for each picture."""


def mask(lengths: Sequence[int], tokens: int) -> np.ndarray:
    return np.array([[i < n for i in range(tokens)] for n in lengths], np.float32)


def inputs(config: Mapping[str, Any], height: int = 6, width: int = 10) -> dict[str, Any]:
    given = {
        "latents": noise(2, 4, height, width, seed=1),
        "timesteps": np.array([999.0, 250.0], np.float32),
        "context": noise(2, 5, BERT_WIDTH, seed=2),
        "context_mask": mask([first for first, _ in LENGTHS], 5),
        "context_2": noise(2, 7, T5_WIDTH, seed=3),
        "context_2_mask": mask([second for _, second in LENGTHS], 7),
    }
    if config["use_style_cond_and_image_meta_size"]:
        sizes = [[1024, 768, 80, 48, 0, 0], [512, 640, 80, 48, 16, 8]]
        given["sizes"] = np.array(sizes, np.float32)
    return given


def reference(model: torch.nn.Module, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """The velocity that diffusers' network predicts, with positions as its pipeline gives them."""
    rows, columns = (side // 2 for side in given["latents"].shape[2:])
    region = get_resize_crop_region_for_grid((rows, columns), BASE)
    tensors = {name: torch.tensor(array) for name, array in given.items()}
    with torch.no_grad():
        return (
            model(
                tensors["latents"],
                tensors["timesteps"],
                encoder_hidden_states=tensors["context"],
                text_embedding_mask=tensors["context_mask"],
                encoder_hidden_states_t5=tensors["context_2"],
                text_embedding_mask_t5=tensors["context_2_mask"],
                image_meta_size=tensors.get("sizes"),
                style=torch.zeros(2, dtype=torch.long),
                image_rotary_emb=get_2d_rotary_pos_embed(
                    model.inner_dim // model.num_heads, region, (rows, columns)
                ),
            )
            .sample[:, :4]
            .numpy()
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_denoiser(variant: str, tmp_path: Path) -> None:
    config = VARIANTS[variant]
    model = tiny(HunyuanDiT2DModel, config)
    network = native(model, "hunyuan_dit", TABLES, tmp_path)
    for height, width in ((6, 10), (20, 8), (8, 8)):
        given = inputs(config, height, width)
        found = network.run(given)["prediction"]
        assert relative_error(found, reference(model, given)) <= LIMIT


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny(HunyuanDiT2DModel, OLD | SHORT)


@pytest.fixture(scope="module")
def network(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> _core.Network:
    return native(model, "hunyuan_dit", TABLES, tmp_path_factory.mktemp("hunyuan"))


def test_what_stands_at_padding_is_not_read_but_pooled(network: _core.Network) -> None:
    given = inputs(OLD)
    plain = network.run(given)["prediction"]
    changed = {name: array.copy() for name, array in given.items()}
    changed["context"][1, 2:] += 1.0
    assert np.array_equal(network.run(changed)["prediction"], plain)
    changed["context_2"][1, 3:] += 1.0  # the pooled text has no mask
    found = network.run(changed)["prediction"]
    assert np.array_equal(found[0], plain[0])
    assert relative_error(found[1], plain[1]) > 1e-3


def test_without_some_blocks(model: torch.nn.Module, network: _core.Network) -> None:
    assert network.guidance_layers == [f"blocks.{i}" for i in range(6)]
    given = inputs(OLD)
    found = network.run(given, {"skip_layers": 0b010010})["prediction"]

    def nothing(hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return hidden_states

    kept = {i: model.blocks[i].forward for i in (1, 4)}
    try:
        for i in kept:
            model.blocks[i].forward = nothing
        assert relative_error(found, reference(model, given)) <= LIMIT
    finally:
        for i, forward in kept.items():
            model.blocks[i].forward = forward


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("latents", (2, 16, 6, 10), "'latents' of"),
        ("latents", (2, 4, 6, 9), "multiples of 2"),
        ("timesteps", (3,), "'timesteps'"),
        ("context", (2, 5, BERT_WIDTH + 1), "'context'"),
        ("context", (2, 6, BERT_WIDTH), "'context'"),
        ("context_2", (1, 7, T5_WIDTH), "'context_2'"),
        ("context_mask", (2, 6), "'context_mask'"),
        ("context_2_mask", (2, 6), "'context_2_mask'"),
        ("sizes", (2, 5), "'sizes'"),
    ],
)
def test_odd_inputs(
    network: _core.Network, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        network.run({**inputs(OLD), name: noise(*shape)})
    without = inputs(OLD)
    del without[name]
    with pytest.raises(ParameterError, match=f"'{name}' is missing"):
        network.run(without)


@pytest.mark.parametrize("changed", [{"layers": 5}, {"context_2_width": 12}, {"head_dim": 6}])
def test_odd_figures(changed: dict[str, int]) -> None:
    good = {
        **{"in_channels": 4, "out_channels": 8, "width": 24, "head_dim": 12, "layers": 6},
        **{"ff_width": 30, "context_width": 16, "context_tokens": 5, "context_2_width": 16},
        **{"context_2_tokens": 7, "pooled_text_width": 20, "styles": 1},
    }
    assert _core.parameters("hunyuan_dit", good)
    with pytest.raises(sdengine.SDEngineError):
        _core.parameters("hunyuan_dit", good | changed)


def test_of_several_styles_the_first_is_read(model: torch.nn.Module, tmp_path: Path) -> None:
    name = "time_extra_emb.style_embedder.weight"

    def with_more(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return state | {name: torch.cat([state[name], torch.ones(2, 24)])}

    network = native(model, "hunyuan_dit", TABLES, tmp_path, with_more)
    found = network.run(inputs(OLD))["prediction"]
    assert relative_error(found, reference(model, inputs(OLD))) <= LIMIT


# ------------------------------------------------------------------------------------ pipelines
PROMPT, NEGATIVE = "A red circle on a blue background, 一只猫。", "low quality, two dogs"
SIZE = {"width": 64, "height": 96}
SEED = 7
MODELS: dict[str, tuple[dict[str, Any], float]] = {"1.1": (OLD, 0.03), "1.2": (NEW, 0.018)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hunyuan")
    return {name: tiny_hunyuan_folder(root / name, *of) for name, of in MODELS.items()}


def of_diffusers(folder: Path, prompt: Any, **options: Any) -> tuple[Any, np.ndarray]:
    from diffusers import HunyuanDiTPipeline

    many = isinstance(prompt, list)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = HunyuanDiTPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        result = pipe(
            prompt,
            generator=generators if many else generators[0],
            use_resolution_binning=False,
            output_type="latent",
            **{"num_inference_steps": 4, **SIZE, **options},
        )
    return pipe, np.asarray(result.images)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_text_to_image(folders: dict[str, Path], name: str, guidance: float) -> None:
    options: dict[str, Any] = {"guidance_scale": guidance}
    _, expected = of_diffusers(folders[name], PROMPT, negative_prompt=NEGATIVE, **options)
    pipe = sdengine.load(folders[name])
    assert pipe.model.title == f"Hunyuan-DiT {name}"
    assert pipe.model.scheduler.beta_end == MODELS[name][1]
    found = pipe.generate(PROMPT, NEGATIVE, steps=4, seed=SEED, **options, **SIZE)
    assert relative_error(found.latents, expected) <= 1e-3
    assert found.image.size == (64, 96)
    if guidance == 5.0:  # the default; and no negative prompt is an empty one
        _, expected = of_diffusers(folders[name], PROMPT, **options)
        found = pipe.generate(PROMPT, steps=4, seed=SEED, **SIZE)
        assert relative_error(found.latents, expected) <= 1e-3


def test_several_prompts_and_a_conditioning(folders: dict[str, Path]) -> None:
    prompts, negatives = [PROMPT, "two squares " * 40], [NEGATIVE, "一只"]
    _, expected = of_diffusers(folders["1.1"], prompts, negative_prompt=negatives)
    pipe = sdengine.load(folders["1.1"])
    cond = pickle.loads(pickle.dumps(pipe.encode_prompt(prompts, negatives)))
    assert {name: array.shape for name, array in cond.inputs.items()} == {
        "context_2": (2, 256, T5_WIDTH),
        "context_mask": (2, 77),
        "context_2_mask": (2, 256),
    }
    for given in ({"prompt": prompts, "negative_prompt": negatives}, {"conditioning": cond}):
        found = pipe.generate(steps=4, seed=SEED, batch_size=2, **given, **SIZE)
        assert relative_error(found.latents, expected) <= 1e-3


def test_it_is_told_sizes(folders: dict[str, Path]) -> None:
    told = {"original_size": (512, 640), "crops_coords_top_left": (16, 8)}
    _, expected = of_diffusers(folders["1.1"], PROMPT, **told)
    sizes = {"original_height": 512, "original_width": 640, "crop_top": 16, "crop_left": 8}
    pipe = sdengine.load(folders["1.1"])
    found = pipe.generate(PROMPT, steps=4, seed=SEED, sizes=sizes, **SIZE)
    assert relative_error(found.latents, expected) <= 1e-3
    plain = pipe.generate(PROMPT, steps=4, seed=SEED, **SIZE)
    assert relative_error(plain.latents, expected) > 1e-3
    with pytest.raises(ParameterError, match="not told sizes"):
        sdengine.load(folders["1.2"]).generate(PROMPT, steps=1, sizes=sizes, **SIZE)


def test_one_evaluation(folders: dict[str, Path]) -> None:
    """`predict` is what the reference's network answers to the reference's texts."""
    pipe, _ = of_diffusers(folders["1.1"], PROMPT, num_inference_steps=1)
    latents = noise(2, 4, 12, 8, seed=4)
    ours = sdengine.load(folders["1.1"])
    cond = ours.encode_prompt(PROMPT)
    texts = [pipe.encode_prompt(PROMPT, text_encoder_index=i) for i in range(2)]
    given = {
        "latents": latents,
        "timesteps": np.array([501.0, 501.0], np.float32),
        "context": np.repeat(texts[0][0].detach().numpy(), 2, 0),
        "context_mask": np.repeat(texts[0][2].numpy(), 2, 0).astype(np.float32),
        "context_2": np.repeat(texts[1][0].detach().numpy(), 2, 0),
        "context_2_mask": np.repeat(texts[1][2].numpy(), 2, 0).astype(np.float32),
        "sizes": np.array([[1024, 1024, 96, 64, 0, 0]] * 2, np.float32),
    }
    expected = reference(pipe.transformer, given)
    assert relative_error(ours.predict(latents, 501, cond), expected) <= 1e-5


def test_runs_are_pickled_and_forked(folders: dict[str, Path]) -> None:
    pipe = sdengine.load(folders["1.1"])
    expected = pipe.generate(PROMPT, NEGATIVE, steps=3, seed=SEED, **SIZE).latents
    run = pipe.start(PROMPT, NEGATIVE, steps=3, seed=SEED, **SIZE)
    run.step()
    for other in (pickle.loads(pickle.dumps(run)), run.fork()):
        while not other.done:
            other.step()
        assert np.array_equal(other.latents, expected)


def test_prompts_that_change_and_are_joined(folders: dict[str, Path]) -> None:
    pipe = sdengine.load(folders["1.2"])
    options: dict[str, Any] = {"steps": 3, "seed": SEED, "sampler": "euler", **SIZE}
    plain = pipe.generate("red circle", **options).latents
    changing = pipe.generate("[red:blue:0.5] circle", **options).latents
    joined = pipe.generate("red circle AND blue circle", **options).latents
    assert not np.array_equal(plain, changing)
    assert not np.array_equal(plain, joined)


def test_the_cache_keeps_all_that_the_denoiser_reads(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    made = [
        sdengine.load(folders["1.1"], prompt_cache=tmp_path).encode_prompt(PROMPT, NEGATIVE)
        for _ in range(2)
    ]
    assert len(list(tmp_path.glob("*.prompt"))) == 2
    for name in ("inputs", "negative_inputs"):
        first, second = (getattr(cond, name) for cond in made)
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)
    assert np.array_equal(made[0].context, made[1].context)


def test_image_to_image(folders: dict[str, Path]) -> None:
    pipe = sdengine.load(folders["1.1"])
    given = np.random.default_rng(0).random((96, 64, 3)).astype(np.float32)
    run = pipe.start(PROMPT, image=given, strength=0.5, steps=4, seed=SEED)
    while not run.done:
        run.step()
    assert run.evaluations == 4  # two steps, each with and without the prompt
    assert run.result().image.size == (64, 96)


def test_a_conditioning_must_have_all_inputs(folders: dict[str, Path]) -> None:
    pipe = sdengine.load(folders["1.2"])
    cond = pipe.encode_prompt(PROMPT, NEGATIVE)
    wide = {name: array.astype(np.float64) for name, array in cond.inputs.items()}
    same = Conditioning(cond.context, inputs=wide)
    latents = noise(1, 4, 8, 8)
    assert np.array_equal(pipe.predict(latents, 9, same), pipe.predict(latents, 9, cond))
    without = Conditioning(cond.context, cond.negative_context)
    with pytest.raises(ParameterError, match="the input 'context_2' is missing"):
        pipe.predict(latents, 9, without)
    with pytest.raises(ParameterError, match="the input 'context_2' is missing"):
        pipe.generate(conditioning=without, steps=1, **SIZE)


@pytest.mark.parametrize(
    "odd", [{"context_2": np.zeros((3, 4, 5))}, {"mask": [1.0]}, {"mask": np.array(["a"])}, [1]]
)
def test_odd_inputs_of_a_conditioning(odd: Any) -> None:
    with pytest.raises(ParameterError, match="negative_inputs must be numbers in numpy arrays"):
        Conditioning(np.zeros((1, 2, 3), np.float32), negative_inputs=odd)
