"""Plans: the right bytes for every parameter in every layout, and errors that say what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdengine import _core
from sdengine.errors import ParameterError, TokenizerError, UnsupportedModelError, WeightsError
from sdengine.families import SD1
from sdengine.loading import Binding, ModelPlan, plan_model
from tests import models
from tests.renaming import clip_to_hf, clip_to_openclip


def values(binding: Binding) -> np.ndarray:
    """The float32 values that a binding points to."""
    entry = binding.entry
    assert entry.dtype == "f32"
    blob = np.fromfile(entry.path, np.uint8, entry.nbytes, offset=entry.offset).view(np.float32)
    if binding.transpose:
        return blob.reshape(entry.shape[::-1]).T
    assert entry.strides is None
    return blob.reshape(entry.shape)


def reference(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "unet": models.component_state_dict(folder, "unet"),
        "vae": models.component_state_dict(folder, "vae"),
        "text_encoder": clip_to_hf(models.component_state_dict(folder, "text_encoder")),
    }


def assert_right_bytes(plan: ModelPlan, folder: Path) -> None:
    for name, expected in reference(folder).items():
        found = {b.name: values(b) for b in plan.components[name].bindings}
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert np.array_equal(found[key], tensor.numpy()), key


WHOLE = ["diffusers", "ldm", "ckpt", "all-in-one"]


@pytest.mark.parametrize("layout", WHOLE)
def test_every_parameter_of_every_layout(
    layouts: dict[str, Path], folder: Path, layout: str
) -> None:
    plan = plan_model(layouts[layout])
    assert_right_bytes(plan, folder)
    assert plan.unused == ()
    assert plan.family is SD1
    assert plan.task == "text"


@pytest.mark.parametrize("layout", ["city96", "city96-diffusers"])
@pytest.mark.parametrize("source", ["parts", "ldm", "diffusers"])
def test_a_denoiser_with_parts_from_elsewhere(
    layouts: dict[str, Path], folder: Path, layout: str, source: str
) -> None:
    vae = folder / "vae" if source == "parts" else layouts[source]
    encoder = folder / "text_encoder" if source == "parts" else layouts[source]
    plan = plan_model(layouts[layout], vae=vae, text_encoders=encoder)
    assert_right_bytes(plan, folder)
    assert plan.unused == ()


@pytest.mark.parametrize(
    "wrap",
    [lambda p: p, str, lambda p: [p], lambda p: {"text_encoder": p}],
    ids=["path", "str", "list", "mapping"],
)
def test_text_encoders_are_given_in_several_ways(
    layouts: dict[str, Path], folder: Path, wrap: Callable[[Path], object]
) -> None:
    given = wrap(folder / "text_encoder")
    plan = plan_model(layouts["ldm"], text_encoders=given)  # type: ignore[arg-type]
    assert plan.components["text_encoder"].path == folder / "text_encoder"
    assert plan.components["unet"].path == layouts["ldm"]


def test_the_same_config_from_shapes_and_from_json(layouts: dict[str, Path]) -> None:
    plans = [plan_model(layouts[layout]) for layout in WHOLE]
    for name in ("unet", "vae", "text_encoder"):
        configs = [plan.components[name].config for plan in plans]
        assert all(config == configs[0] for config in configs)


def test_native_parameters_are_bound_in_order(layouts: dict[str, Path]) -> None:
    for part in plan_model(layouts["ldm"]).components.values():
        expected = _core.parameters(part.kind, dict(part.config))
        assert [(b.name, b.entry.shape) for b in part.bindings] == expected
        assert part.parameters == sum(b.entry.elements for b in part.bindings)
        assert part.nbytes == 4 * part.parameters


@pytest.mark.parametrize(("channels", "task"), [(8, "edit"), (9, "inpaint")])
def test_tasks(tmp_path: Path, channels: int, task: str) -> None:
    folder = models.tiny_sd1_folder(tmp_path / "model", in_channels=channels)
    plan = plan_model(models.write_ldm_safetensors(folder, tmp_path / "m.safetensors"))
    assert plan.task == task
    assert plan.components["unet"].config["in_channels"] == channels


def test_linear_projections(tmp_path: Path) -> None:
    folder = models.tiny_sd1_folder(tmp_path / "model", linear_projection=True)
    for path in (folder, models.write_ldm_safetensors(folder, tmp_path / "m.safetensors")):
        plan = plan_model(path)
        assert plan.components["unet"].config["linear_projection"] is True
        assert_right_bytes(plan, folder)


def test_open_clip_names(folder: Path, layouts: dict[str, Path], tmp_path: Path) -> None:
    clip = models.component_state_dict(folder, "text_encoder")
    projection = torch.randn(96, 128)
    clip["text_projection.weight"] = projection
    path = tmp_path / "clip.safetensors"
    save_file(clip_to_openclip(clip), path)
    plan = plan_model(layouts["ldm"], text_encoders=path)
    part = plan.components["text_encoder"]
    assert part.dialect == "OpenCLIP"
    assert part.config["projection_dim"] == 96
    found = {b.name: values(b) for b in part.bindings}
    expected = reference(folder)["text_encoder"] | {"text_projection.weight": projection}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name].numpy()) for name in expected)


# ------------------------------ what else is in it
def test_defaults_and_scheduler_of_a_folder(folder: Path) -> None:
    plan = plan_model(folder)
    assert (plan.defaults.width, plan.defaults.height) == (64, 64)  # sample_size 8, factor 8
    assert (plan.defaults.sampler, plan.defaults.schedule) == ("ipndm", "leading")
    assert plan.scheduler.source == "PNDMScheduler"
    assert plan.scheduler.steps_offset == 1
    assert plan.latents.factor == 8
    assert plan.latents.scale == 0.18215


def test_defaults_of_a_single_file_are_the_family_s(layouts: dict[str, Path]) -> None:
    plan = plan_model(layouts["ldm"])
    assert plan.defaults == SD1.defaults
    assert plan.scheduler.prediction == "epsilon"


def test_marks_of_velocity_prediction(layouts: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(layouts["ldm"])
    save_file(
        {**state, "v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, tmp_path / "v.safetensors"
    )
    plan = plan_model(tmp_path / "v.safetensors")
    assert plan.scheduler.prediction == "v_prediction"
    assert plan.scheduler.rescale_zero_snr
    assert plan.unused == ()


def test_foreign_tensors_are_reported(layouts: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(layouts["ldm"])
    state["something.else"] = torch.zeros(3)
    state["model.diffusion_model.extra.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "m.safetensors")
    unused = plan_model(tmp_path / "m.safetensors").unused
    assert set(unused) == {"something.else", "model.diffusion_model.extra.weight"}


# ------------------------------ tokenizers
def test_the_folder_s_tokenizer(folder: Path) -> None:
    source = plan_model(folder).tokenizers["text_encoder"]
    assert source.path == folder / "tokenizer"
    assert source.open().vocab_size == source.vocab_size


def test_a_tokenizer_beside_the_file(
    folder: Path, layouts: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(layouts["ldm"], tmp_path / "m.safetensors")
    assert plan_model(tmp_path / "m.safetensors").tokenizers["text_encoder"].path is None
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    assert (
        plan_model(tmp_path / "m.safetensors").tokenizers["text_encoder"].path
        == tmp_path / "tokenizer"
    )


def test_a_tokenizer_beside_the_text_encoder(folder: Path, layouts: dict[str, Path]) -> None:
    plan = plan_model(layouts["ldm"], text_encoders=folder / "text_encoder")
    assert plan.tokenizers["text_encoder"].path == folder / "tokenizer"


def test_a_tokenizer_with_too_many_words(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    models.write_clip_tokenizer(tmp_path / "model" / "tokenizer", merges=130)
    with pytest.raises(TokenizerError, match=r"644 words.*634"):
        plan_model(tmp_path / "model").tokenizers["text_encoder"].open()


# ------------------------------ errors
@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    state = load_file(source)
    edit(state)
    save_file(state, target)
    return target


NAME = "model.diffusion_model.middle_block.0.in_layers.2.weight"


def test_a_missing_parameter_names_the_nearest(layouts: dict[str, Path], tmp_path: Path) -> None:
    path = change(
        layouts["ldm"],
        tmp_path / "m.safetensors",
        lambda s: s.update({NAME.replace("in_layers", "in_layer"): s.pop(NAME)}),
    )
    with pytest.raises(
        WeightsError, match=r"1 of 304 .* unet .*in_layers\.2.*\[64, 64, 3, 3\] is missing"
    ) as error:
        plan_model(path)
    assert "nearest in the file: 'model.diffusion_model.middle_block.0.in_layer.2.weight'" in str(
        error.value
    )


def test_a_missing_parameter_of_a_folder_names_the_nearest(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    name = "mid_block.resnets.0.conv1.weight"
    change(file, file, lambda s: s.update({name.replace("conv1", "conv_1"): s.pop(name)}))
    with pytest.raises(
        WeightsError, match=r"nearest in the file: 'unet/mid_block\.resnets\.0\.conv_1"
    ):
        plan_model(copy)


def test_an_unknown_family(folder: Path) -> None:
    assert plan_model(folder, family="sd1").family is SD1
    with pytest.raises(ParameterError, match="no family 'sd9'; choose one of .*sd1"):
        plan_model(folder, family="sd9")


def test_a_wrong_shape_is_reported(layouts: dict[str, Path], tmp_path: Path) -> None:
    path = change(
        layouts["ldm"],
        tmp_path / "m.safetensors",
        lambda s: s.update({NAME: torch.zeros(64, 32, 3, 3)}),
    )
    with pytest.raises(WeightsError, match=r"\[64, 32, 3, 3\]; expected \[64, 64, 3, 3\]"):
        plan_model(path)


def test_transposed_matrices_are_no_fit(layouts: dict[str, Path], tmp_path: Path) -> None:
    name = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    path = change(
        layouts["ldm"],
        tmp_path / "m.safetensors",
        lambda s: s.update({name: s[name].T.contiguous()}),
    )
    with pytest.raises(WeightsError, match=r"\[128, 160\]; expected \[160, 128\]"):
        plan_model(path)


def test_many_faults_are_counted(layouts: dict[str, Path], tmp_path: Path) -> None:
    def edit(state: dict[str, torch.Tensor]) -> None:
        for name in [n for n in state if "middle_block.1" in n and n.endswith("bias")]:
            del state[name]

    path = change(layouts["ldm"], tmp_path / "m.safetensors", edit)
    with pytest.raises(WeightsError, match=r"10 of 304.*and 7 more"):
        plan_model(path)


def test_integers_are_no_weights(layouts: dict[str, Path], tmp_path: Path) -> None:
    path = change(
        layouts["ldm"],
        tmp_path / "m.safetensors",
        lambda s: s.update({NAME: s[NAME].to(torch.int32)}),
    )
    with pytest.raises(WeightsError, match="has type i32"):
        plan_model(path)


def test_a_parameter_given_twice(layouts: dict[str, Path], tmp_path: Path) -> None:
    name = "model.diffusion_model.output_blocks.2.1.conv.weight"
    path = change(
        layouts["ldm"],
        tmp_path / "m.safetensors",
        lambda s: s.update({name.replace("2.1.conv", "2.2.conv"): s[name].clone()}),
    )
    with pytest.raises(WeightsError, match=r"2\.1\.conv.*2\.2\.conv.*both"):
        plan_model(path)


def test_missing_components_say_how_to_give_them(layouts: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"text_encoders=\.\.\., vae=\.\.\."):
        plan_model(layouts["city96"])


def test_parts_are_no_models(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"KL autoencoder.*vae=\.\.\."):
        plan_model(folder / "vae")
    with pytest.raises(UnsupportedModelError, match=r"CLIP text encoder.*text_encoders=\.\.\."):
        plan_model(folder / "text_encoder")


def test_replacements_must_hold_what_they_replace(folder: Path, layouts: dict[str, Path]) -> None:
    with pytest.raises(ParameterError, match="holds no vae"):
        plan_model(layouts["ldm"], vae=folder / "text_encoder")
    with pytest.raises(ParameterError, match="a model without one"):
        plan_model(layouts["ldm"], vae=layouts["city96"])
    with pytest.raises(ParameterError, match="2 text encoders given"):
        plan_model(layouts["ldm"], text_encoders=[folder, folder])
    with pytest.raises(ParameterError, match="no 'clip_g'"):
        plan_model(layouts["ldm"], text_encoders={"clip_g": folder})


def test_an_autoencoder_of_another_family(
    folder: Path, layouts: dict[str, Path], tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(**{**models.VAE_CONFIG, "latent_channels": 16}).save_pretrained(tmp_path / "vae")
    with pytest.raises(WeightsError, match=r"16 channels.* takes 4"):
        plan_model(layouts["ldm"], vae=tmp_path / "vae")


# ------------------------------ configs that tell lies
def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


LIES = {
    "unet": [
        {"in_channels": 9},
        {"block_out_channels": [32, 32]},
        {"layers_per_block": 3},
        {"cross_attention_dim": 768},
        {"norm_num_groups": 5},
        {"norm_num_groups": 0},
        {"norm_eps": "small"},
        {"attention_head_dim": 7},
        {"attention_head_dim": [8, 8, 8]},
        {"attention_head_dim": True},
    ],
    "vae": [
        {"latent_channels": 16},
        {"block_out_channels": [32, 64]},
        {"layers_per_block": 2},
        {"use_quant_conv": False},
        {"scaling_factor": 0},
        {"scaling_factor": [1]},
    ],
    "text_encoder": [
        {"hidden_size": 768},
        {"num_hidden_layers": 12},
        {"num_attention_heads": 3},
        {"eos_token_id": 49407},
        {"layer_norm_eps": -1},
    ],
}


@pytest.mark.parametrize(
    ("component", "lie"), [(c, lie) for c, lies in LIES.items() for lie in lies], ids=str
)
def test_configs_that_contradict_the_tensors(
    copy: Path, component: str, lie: dict[str, object]
) -> None:
    edit_json(copy / component / "config.json", **lie)
    with pytest.raises(WeightsError, match=component):
        plan_model(copy)


@pytest.mark.parametrize(
    ("component", "option"),
    [
        ("unet", {"resnet_time_scale_shift": "scale_shift"}),
        ("unet", {"flip_sin_to_cos": False}),
        ("unet", {"act_fn": "relu"}),
        ("vae", {"act_fn": "gelu"}),
        ("text_encoder", {"hidden_act": "relu"}),
        ("scheduler", {"prediction_type": "flow_prediction"}),
        ("scheduler", {"beta_schedule": "sigmoid"}),
        ("scheduler", {"trained_betas": [0.1]}),
    ],
    ids=str,
)
def test_configs_that_ask_for_something_else(
    copy: Path, component: str, option: dict[str, object]
) -> None:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    edit_json(copy / component / name, **option)
    with pytest.raises(
        UnsupportedModelError, match=next(iter(option)).split("_type")[0].split("_sch")[0]
    ):
        plan_model(copy)


def test_what_only_a_config_tells(copy: Path) -> None:
    edit_json(
        copy / "unet" / "config.json", attention_head_dim=[4, 2], norm_num_groups=16, norm_eps=1e-4
    )
    edit_json(copy / "vae" / "config.json", norm_num_groups=8, scaling_factor=0.5)
    edit_json(
        copy / "text_encoder" / "config.json",
        hidden_act="gelu",
        num_attention_heads=4,
        eos_token_id=2,
    )
    plan = plan_model(copy)
    unet, vae, text = (plan.components[name].config for name in ("unet", "vae", "text_encoder"))
    assert (unet["attention_heads"], unet["norm_groups"], unet["norm_eps"]) == ([4, 2], 16, 1e-4)
    assert (vae["norm_groups"], plan.latents.scale) == (8, 0.5)
    assert (text["activation"], text["heads"], text["eos_token_id"]) == ("gelu", 4, 633)
