"""LoRAs on tiny SD3 and FLUX.1 models against diffusers with PEFT: same files, same scales."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.models import component_state_dict
from tests.parity.conftest import relative_error
from tests.parity.dit import json_of
from tests.parity.test_dit_networks import flux_inputs, flux_reference, sd3_inputs, sd3_reference
from tests.parity.test_dit_pipelines import NEGATIVE, PROMPT, SEED, SIZE, unpacked
from tests.renaming_dit import flux_to_bfl, sd3_to_reference

from .files import ENCODER, State, dotted, kohya, lora, pair, write

PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
EVERY = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("net.0.proj", "net.2", "proj_mlp", "proj_out", "norm.linear", "norm1.linear"),
    *("norm1_context.linear", "norm_out.linear", "linear_1", "linear_2", "context_embedder"),
)
SOME = ("to_q", "to_v", "add_k_proj", "net.2")
FOLDERS = {"flux": tiny_flux_folder, "sd3": tiny_sd3_folder}
PIPELINES = {"flux": "FluxPipeline", "sd3": "StableDiffusion3Pipeline"}
RENAME = {"flux": flux_to_bfl, "sd3": sd3_to_reference}


class Model:
    """A tiny model with LoRAs, in diffusers and in sdengine."""

    def __init__(self, folder: Path, family: str) -> None:
        import diffusers

        self.family, self.folder = family, folder
        self.path = FOLDERS[family](folder / "model")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.reference = getattr(diffusers, PIPELINES[family]).from_pretrained(self.path)
        self.reference.set_progress_bar_config(disable=True)
        # CLIP's encoders; diffusers reads no LoRA of T5.
        self.encoders = ["text_encoder", *(["text_encoder_2"] if family == "sd3" else [])]
        self.files = {
            name: write(folder / f"{name}.safetensors", self._state(seed, endings, rank))
            for name, seed, endings, rank in (("one", 1, EVERY, 4), ("two", 2, SOME, 2))
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, file in self.files.items():
                self.reference.load_lora_weights(str(file), adapter_name=name)
        self.pipe = sdengine.load(self.path)

    def _state(self, seed: int, endings: tuple[str, ...], rank: int) -> State:
        more: dict[str, Any] = {"rank": rank, "names": PEFT}
        transformer = self.reference.transformer
        state = lora(transformer, endings, dotted("transformer."), seed=seed, **more)
        for number, name in enumerate(self.encoders):
            encoder, own = getattr(self.reference, name), 10 * seed + number
            state |= lora(encoder, ENCODER, dotted(f"{name}."), seed=own, **more)
        return state

    def set(self, scales: dict[str, float]) -> None:
        self.reference.set_adapters(list(scales), list(scales.values()))
        self.pipe.set_loras([(self.files[name], scale) for name, scale in scales.items()])

    def both(self) -> tuple[np.ndarray, np.ndarray]:
        """One evaluation of the denoiser: what sdengine finds, and diffusers."""
        transformer = self.reference.transformer
        make = {"flux": flux_inputs, "sd3": sd3_inputs}[self.family]
        run = {"flux": flux_reference, "sd3": sd3_reference}[self.family]
        inputs = make(json_of(transformer), (1, 8, 12))
        return probe(self.pipe, inputs), run(transformer, inputs)

    def generated(self, pipe: sdengine.Pipeline, **options: Any) -> np.ndarray:
        run = pipe.start(PROMPT, **self.negative, steps=4, guidance_scale=3.5, seed=SEED, **SIZE,
                         **options)  # fmt: skip
        while not run.done:
            run.step()
        return run.latents

    @property
    def negative(self) -> dict[str, str]:
        return {"negative_prompt": NEGATIVE} if self.family == "sd3" else {}

    def expected(self) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.reference(
                PROMPT,
                **self.negative,
                num_inference_steps=4,
                guidance_scale=3.5,
                generator=torch.Generator().manual_seed(SEED),
                output_type="latent",
                **SIZE,
            ).images
        tokens = np.asarray(found)
        return unpacked(self.reference, tokens) if self.family == "flux" else tokens


def probe(pipe: sdengine.Pipeline, inputs: dict[str, np.ndarray]) -> np.ndarray:
    context, pooled = inputs["context"], inputs["pooled"]
    cond = sdengine.Conditioning(context, context, pooled, pooled)
    guidance = float(inputs["guidance"][0]) if "guidance" in inputs else None
    return pipe.predict(
        inputs["latents"], inputs["timesteps"].tolist(), cond, guidance_scale=guidance
    )


@pytest.fixture(scope="module", params=["flux", "sd3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp(request.param), request.param)


CASES: list[dict[str, float]] = [
    {"one": 0.5},
    {"one": 1.0},
    {"one": 1.5},
    {"one": 0.7, "two": -0.6},
]


@pytest.mark.parametrize("scales", CASES, ids=str)
def test_one_evaluation(model: Model, scales: dict[str, float]) -> None:
    model.set(scales)
    found, expected = model.both()
    assert relative_error(found, expected) <= 1e-4
    model.pipe.set_loras([])
    assert relative_error(model.both()[0], expected) > 1e-2


@pytest.mark.parametrize("scales", [{"one": 1.5}, {"one": 0.7, "two": -0.6}], ids=str)
def test_whole_pipeline(model: Model, scales: dict[str, float]) -> None:
    model.set(scales)
    expected = model.expected()
    model.pipe.set_loras([])
    loras = [(model.files[name], scale) for name, scale in scales.items()]
    assert relative_error(model.generated(model.pipe, loras=loras), expected) <= 1e-3
    assert relative_error(model.generated(model.pipe), expected) > 1e-2


# ------------------------------ the layouts of files
def reference_modules(model: Model) -> dict[str, torch.Tensor]:
    """Module of the reference naming -> weight, queries, keys and values together."""
    state = component_state_dict(model.path, "transformer")
    renamed = RENAME[model.family](state)
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in renamed.items()
        if name.endswith(".weight") and tensor.dim() == 2 and "embedder.proj" not in name
    }


def fused(model: Model) -> tuple[State, State]:
    """(up, down) per module of the reference naming."""
    up: State = {}
    down: State = {}
    for number, (name, weight) in enumerate(reference_modules(model).items()):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data = weight
        down[name], up[name] = pair(layer, 4, 100 + 2 * number)
    return up, down


def test_fused_names_and_layouts(model: Model, tmp_path: Path) -> None:
    """A LoRA in the reference's names on either layout is the model whose fused weights were changed."""
    up, down = fused(model)
    whole = RENAME[model.family](component_state_dict(model.path, "transformer"))
    prefix = "model.diffusion_model."
    changed = {prefix + name: tensor for name, tensor in whole.items()}
    plain = dict(changed)
    for name in up:
        changed[f"{prefix}{name}.weight"] = whole[f"{name}.weight"] + 0.7 * (up[name] @ down[name])
    inputs_of = {"flux": flux_inputs, "sd3": sd3_inputs}[model.family]
    inputs = inputs_of(json_of(model.reference.transformer), (1, 8, 12))
    expected = probe(load(model, write(tmp_path / "changed.safetensors", changed)), inputs)
    single = load(model, write(tmp_path / "plain.safetensors", plain))
    for naming, rename, names in (
        ("kohya", kohya("lora_unet_"), KOHYA),
        ("ComfyUI", dotted("diffusion_model."), PEFT),
    ):
        state = {rename(name) + names[0]: tensor for name, tensor in down.items()}
        state |= {rename(name) + names[1]: tensor for name, tensor in up.items()}
        path = write(tmp_path / f"{naming}.safetensors", state)
        for pipe in (model.pipe, single):
            pipe.set_loras([(path, 0.7)])
            assert relative_error(probe(pipe, inputs), expected) <= 1e-5, naming
            pipe.set_loras([])
            assert relative_error(probe(pipe, inputs), expected) > 1e-2
    # And the split names on the file whose weights are fused.
    single.set_loras([(model.files["one"], 0.7)])
    model.pipe.set_loras([(model.files["one"], 0.7)])
    assert relative_error(probe(single, inputs), probe(model.pipe, inputs)) <= 1e-5
    model.pipe.set_loras([])


def load(model: Model, path: Path) -> sdengine.Pipeline:
    """The model with a single file in place of its denoiser."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    for part in model.path.iterdir():
        if part.is_dir() and part.name != "transformer" and not (folder / part.name).exists():
            (folder / part.name).symlink_to(part)
    encoders = {name: folder / name for name in model.pipe.model.tokenizers}
    return sdengine.load(path, vae=folder / "vae", text_encoders=encoders)
