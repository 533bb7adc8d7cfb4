"""Plans of Stable Diffusion 2, SDXL and the refiner: parts, predictions, latents, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError, WeightsError
from sdengine.families import SD2, SDXL, SDXL_REFINER
from sdengine.loading import plan_model
from sdengine.loading.scheduler import from_diffusers
from tests import unet_models
from tests.models import VAE_CONFIG, component_state_dict, write_clip_tokenizer
from tests.renaming import unet_to_ldm, vae_to_ldm
from tests.unet_models import State, encoder_state, write_gguf, write_safetensors

L, G = "text_encoder", "text_encoder_2"


class Parts:
    """A tiny SDXL as its users have it in parts."""

    def __init__(self, root: Path) -> None:
        self.folder = unet_models.tiny_folder(root / "sdxl", "sdxl", seed=1)
        self.root = root
        self.unet = write_gguf(component_state_dict(self.folder, "unet"), root / "unet.gguf")
        vae = vae_to_ldm(component_state_dict(self.folder, "vae"))
        self.vae = write_safetensors(vae, root / "vae.safetensors")
        self.clip_l = write_safetensors(encoder_state(self.folder, L), root / "clip_l.safetensors")
        self.clip_g = write_safetensors(encoder_state(self.folder, G), root / "clip_g.safetensors")
        self.whole = write_safetensors(
            unet_models.single_file(self.folder, "sdxl"), root / "whole.safetensors"
        )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unet_models.tiny_folder(tmp_path_factory.mktemp("sd1") / "model", "sd1", seed=2)


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unet_models.tiny_folder(tmp_path_factory.mktemp("sd2") / "model", "sd2", seed=3)


# ------------------------------ text encoders from elsewhere
WAYS: dict[str, Callable[[Parts], Any]] = {
    "list": lambda p: [p.clip_l, p.clip_g],
    "list, the other way round": lambda p: [p.clip_g, p.clip_l],
    "mapping": lambda p: {G: p.clip_g, L: p.clip_l},
    "a whole model": lambda p: p.whole,
    "a folder": lambda p: p.folder,
    "a file and a folder": lambda p: [p.folder / L, str(p.clip_g)],
    "folders of one encoder": lambda p: {L: p.folder / L, G: p.folder / G},
}


@pytest.mark.parametrize("way", WAYS)
def test_both_text_encoders_from_elsewhere(parts: Parts, way: str) -> None:
    plan = plan_model(parts.unet, vae=parts.vae, text_encoders=WAYS[way](parts))
    assert plan.family is SDXL
    widths = {name: part.config.get("hidden_size") for name, part in plan.components.items()}
    assert widths == {"unet": None, L: 64, G: 128, "vae": None}
    assert plan.components[G].config["activation"] == "gelu"


@pytest.mark.parametrize(("given", "place"), [("clip_l", L), ("clip_g", G)])
def test_one_text_encoder_takes_the_place_of_its_width(
    parts: Parts, given: str, place: str
) -> None:
    path = getattr(parts, given)
    plan = plan_model(parts.whole, text_encoders=path)
    assert plan.components[place].path == path
    other = L if place == G else G
    assert plan.components[other].path == parts.whole


def test_a_file_of_both_encoders_and_nothing_else(parts: Parts, tmp_path: Path) -> None:
    state = {f"text_encoders.clip_l.{n}": t for n, t in encoder_state(parts.folder, L).items()}
    state |= {f"text_encoders.clip_g.{n}": t for n, t in encoder_state(parts.folder, G).items()}
    path = write_safetensors(state, tmp_path / "clips.safetensors")
    plan = plan_model(parts.unet, vae=parts.vae, text_encoders=path)
    assert {plan.components[name].path for name in (L, G)} == {path}


def test_a_missing_text_encoder_is_named(parts: Parts) -> None:
    with pytest.raises(WeightsError, match=r"bigG.*text_encoders=\{'text_encoder_2': \.\.\.\}"):
        plan_model(parts.unet, vae=parts.vae, text_encoders=parts.clip_l)
    with pytest.raises(WeightsError, match=r"ViT-L.*text_encoders=\{'text_encoder': \.\.\.\}"):
        plan_model(parts.unet, vae=parts.vae, text_encoders=parts.clip_g)
    with pytest.raises(WeightsError, match=r"ViT-L.* and an OpenCLIP ViT-bigG .* and a KL auto"):
        plan_model(parts.unet)


def test_an_encoder_of_another_family(parts: Parts, sd1: Path, sd2: Path) -> None:
    for other in ({L: sd2 / L}, {G: parts.clip_l}, {L: parts.clip_g}):
        with pytest.raises(
            WeightsError, match=r"context of \d+ columns.*reads 192|text_projection"
        ):
            plan_model(parts.whole, text_encoders=other)
    with pytest.raises(WeightsError, match=r"text_projection.*text_encoders="):
        plan_model(parts.unet, vae=parts.vae, text_encoders={L: parts.clip_l, G: sd1 / L})
    with pytest.raises(WeightsError, match=r"64 columns.*reads 1024.*ViT-H"):
        plan_model(sd2, text_encoders=sd1 / L)


def test_more_encoders_than_there_are(parts: Parts) -> None:
    with pytest.raises(ParameterError, match="3 text encoders given; Stable Diffusion XL has 2"):
        plan_model(parts.unet, text_encoders=[parts.clip_l, parts.clip_g, parts.clip_l])
    with pytest.raises(ParameterError, match="no 't5xxl'; it has text_encoder, .*clip_l, clip_g"):
        plan_model(parts.unet, text_encoders={"t5xxl": parts.clip_g})
    with pytest.raises(ParameterError, match="holds no text_encoder"):
        plan_model(parts.unet, text_encoders=parts.vae)


def test_a_pooled_text_of_the_wrong_width(parts: Parts, tmp_path: Path) -> None:
    state = encoder_state(parts.folder, G)
    state["text_projection.weight"] = torch.randn(96, 128)
    path = write_safetensors(state, tmp_path / "g.safetensors")
    with pytest.raises(WeightsError, match=r"pooled text of 96 .*text_encoder_2 .* reads 128"):
        plan_model(parts.whole, text_encoders={G: path})


# ------------------------------ autoencoders from elsewhere
def test_the_autoencoder_of_another_family(parts: Parts, sd1: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"scaled by 0\.18215.*XL by 0\.13025.*vae="):
        plan_model(parts.whole, vae=sd1 / "vae")
    assert plan_model(parts.whole, vae=parts.folder / "vae").latents.scale == 0.13025
    AutoencoderKL(**{**VAE_CONFIG, "latent_channels": 16}).save_pretrained(tmp_path / "vae")
    with pytest.raises(WeightsError, match=r"16 channels.* takes 4"):
        plan_model(parts.whole, vae=tmp_path / "vae")


def test_a_refiner_alone_is_loaded(tmp_path: Path) -> None:
    folder = unet_models.tiny_folder(tmp_path / "refiner", "refiner")
    plan = plan_model(folder)
    assert plan.family.name == SDXL_REFINER.name
    assert list(plan.components) == ["unet", G, "vae"]
    assert list(plan.tokenizers) == [G]
    assert plan.family.size_conditioning is not None
    assert plan.family.size_conditioning.names[-1] == "aesthetic_score"
    assert not plan.family.empty_negative_is_zeros


# ------------------------------ tokenizers
def test_each_encoder_has_its_tokenizer(parts: Parts) -> None:
    sources = plan_model(parts.folder).tokenizers
    assert [sources[name].path for name in (L, G)] == [
        parts.folder / "tokenizer",
        parts.folder / "tokenizer_2",
    ]
    assert [sources[name].open().pad for name in (L, G)] == [633, 0]


def test_a_second_encoder_without_a_tokenizer_takes_the_first_one_s(
    parts: Parts, tmp_path: Path
) -> None:
    shutil.copy(parts.whole, tmp_path / "m.safetensors")
    write_clip_tokenizer(tmp_path / "tokenizer")
    sources = plan_model(tmp_path / "m.safetensors").tokenizers
    assert {source.path for source in sources.values()} == {tmp_path / "tokenizer"}
    shutil.copytree(parts.folder, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "tokenizer_2")
    assert plan_model(tmp_path / "folder").tokenizers[G].path == tmp_path / "folder" / "tokenizer"


# ------------------------------ what is predicted
def edited(folder: Path, out: Path, name: str, edit: Callable[[State], object]) -> Path:
    state = unet_models.single_file(folder, name)
    edit(state)
    return write_safetensors(state, out / "m.safetensors")


def deep_sd2(deviation: float, channels: int = 4) -> State:
    """A Stable Diffusion 2 of four levels whose norm has this deviation."""
    from diffusers import UNet2DConditionModel

    config = unet_models.unet_config(
        "cccp",
        (32, 32, 32, 32),
        cross_attention_dim=1024,
        attention_head_dim=(1, 1, 1, 1),
        in_channels=channels,
        use_linear_projection=True,
    )
    state = unet_to_ldm(UNet2DConditionModel(**config).state_dict())
    name = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    values = torch.linspace(-1, 1, 32)
    state[name] = values / values.std(correction=0) * deviation
    return {f"model.diffusion_model.{n}": tensor for n, tensor in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("deviation", "channels", "prediction", "width"),
    [
        (0.095, 4, "v_prediction", 768),
        (0.085, 4, "epsilon", 512),
        (0.095, 9, "epsilon", 512),
        (0.095, 5, "epsilon", 512),
    ],
)
def test_stable_diffusion_2_tells_what_it_predicts(
    sd2: Path,
    tmp_path: Path,
    deviation: float,
    channels: int,
    prediction: str,
    width: int,
    dtype: torch.dtype,
) -> None:
    state = {n: t.to(dtype) for n, t in deep_sd2(deviation, channels).items()}
    path = write_safetensors(state, tmp_path / "m.safetensors")
    plan = plan_model(path, vae=sd2 / "vae", text_encoders=sd2 / L)
    assert plan.family is SD2
    assert plan.scheduler.prediction == prediction
    assert (plan.defaults.width, plan.defaults.height) == (width, width)


def test_the_caller_knows_better(sd2: Path, tmp_path: Path) -> None:
    path = write_safetensors(deep_sd2(0.095), tmp_path / "m.safetensors")
    plan = plan_model(path, vae=sd2 / "vae", text_encoders=sd2 / L, prediction="epsilon")
    assert plan.scheduler.prediction == "epsilon"
    assert plan.defaults.width == 512
    assert plan_model(sd2, prediction="v_prediction").scheduler.prediction == "v_prediction"
    with pytest.raises(ParameterError, match=r"prediction = 'noise'; expected one of epsilon"):
        plan_model(sd2, prediction="noise")


def test_a_scheduler_config_knows_better(sd2: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd2, tmp_path / "model"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"})
    )
    assert plan_model(folder).scheduler.prediction == "v_prediction"


def test_velocity_marks_of_sdxl(parts: Parts, tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    path = edited(parts.folder, tmp_path, "sdxl", lambda state: state.update(marks))
    plan = plan_model(path)
    assert (plan.scheduler.prediction, plan.scheduler.rescale_zero_snr) == ("v_prediction", True)
    assert plan.unused == ()


def test_playground_in_one_file(parts: Parts, tmp_path: Path) -> None:
    marks = {"edm_mean": torch.zeros(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}
    path = edited(parts.folder, tmp_path, "sdxl", lambda state: state.update(marks))
    plan = plan_model(path)
    assert "Playground" in plan.title
    assert plan.scheduler.prediction == "edm"
    assert (plan.scheduler.sigma_min, plan.scheduler.sigma_max) == (0.002, 80.0)
    assert plan.scheduler.sigma_data == 0.5
    assert plan.latents.scale == 0.5
    assert plan.latents.mean == (-1.6574, 1.886, -1.383, 2.5155)
    assert plan.latents.deviation == (8.4927, 5.9022, 6.5498, 5.2299)
    assert plan.unused == ()


def test_playground_as_a_folder(parts: Parts, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parts.folder, tmp_path / "model"))
    config = folder / "vae" / "config.json"
    said = {"latents_mean": [1, 2, 3, 4], "latents_std": [4, 3, 2, 1.5], "scaling_factor": 0.5}
    config.write_text(json.dumps({**json.loads(config.read_text()), **said}))
    scheduler = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 70}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    plan = plan_model(folder)
    assert (plan.latents.mean, plan.latents.deviation) == ((1, 2, 3, 4), (4, 3, 2, 1.5))
    assert plan.scheduler.prediction == "edm"
    assert (plan.scheduler.sigma_max, plan.scheduler.sigma_data) == (70.0, 0.5)
    assert (plan.defaults.sampler, plan.defaults.schedule) == ("dpm++2m", "karras")
    converted = tmp_path / "model.gguf"
    sdengine.convert(folder, converted, "f32")
    again = plan_model(converted)
    assert (again.latents, again.scheduler.prediction) == (plan.latents, "edm")
    assert again.scheduler.sigma_max == 70.0


@pytest.mark.parametrize(
    "lie",
    [
        {"latents_mean": [1, 2, 3], "latents_std": [1, 1, 1]},
        {"latents_mean": [1, 2, 3, 4]},
        {"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 1, 0]},
        {"latents_mean": "none"},
    ],
    ids=str,
)
def test_statistics_of_latents_that_cannot_be(
    parts: Parts, tmp_path: Path, lie: dict[str, object]
) -> None:
    folder = Path(shutil.copytree(parts.folder, tmp_path / "model"))
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **lie}))
    with pytest.raises(WeightsError, match="latents_"):
        plan_model(folder)


def test_continuous_velocity(parts: Parts, tmp_path: Path) -> None:
    marks = {"edm_vpred.sigma_max": torch.tensor(90.0), "edm_vpred.sigma_min": torch.tensor(0.5)}
    path = edited(parts.folder, tmp_path, "sdxl", lambda state: state.update(marks))
    plan = plan_model(path)
    assert plan.scheduler.prediction == "edm_v_prediction"
    assert (plan.scheduler.sigma_min, plan.scheduler.sigma_max) == (0.5, 90.0)
    assert plan.scheduler.sigma_data == 1.0
    assert plan.unused == ()


def test_edm_schedulers_that_predict_something_else() -> None:
    assert from_diffusers({"_class_name": "EDMEulerScheduler"}, SDXL).prediction == "edm"
    velocity = {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}
    assert from_diffusers(velocity, SDXL).prediction == "edm_v_prediction"
    with pytest.raises(UnsupportedModelError, match="'sample'"):
        from_diffusers({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, SDXL)


def test_values_of_small_tensors(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 3.25], np.float16)
    (tmp_path / "v").write_bytes(b"\0\0" + values.tobytes())
    assert _core.read_values("f16", [3], tmp_path / "v", 2, 6) == [1.5, -2.0, 3.25]
    assert _core.read_values("f16", [2], tmp_path / "v", 2, 6, [2]) == [1.5, 3.25]
    with pytest.raises(ParameterError, match="at most 65536 values, not 65537"):
        _core.read_values("f16", [65537], tmp_path / "v", 2, 2 * 65537)
    with pytest.raises(sdengine.SDEngineError):
        _core.read_values("f16", [30], tmp_path / "v", 2, 60)


# ------------------------------ a whole way round
@pytest.mark.parametrize("name", ["sd2", "sdxl", "refiner"])
def test_a_converted_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    folder = unet_models.tiny_folder(tmp_path / "model", name, seed=6)
    sdengine.convert(folder, tmp_path / "m.gguf", "f32")
    before, after = plan_model(folder), plan_model(tmp_path / "m.gguf")
    assert after.unused == ()
    assert after.family.name == before.family.name
    assert (after.scheduler, after.latents) == (before.scheduler, before.latents)
    assert after.tokenizers.keys() == before.tokenizers.keys()
    for component, part in before.components.items():
        assert after.components[component].config == part.config
        mine = {b.name: b.entry for b in after.components[component].bindings}
        for binding in part.bindings:
            assert np.array_equal(*(read(entry) for entry in (binding.entry, mine[binding.name])))


def read(entry: Any) -> np.ndarray:
    return np.fromfile(entry.path, np.float32, entry.elements, offset=entry.offset)
