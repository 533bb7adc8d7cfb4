"""The benchmarks' own parts, on tiny sizes: a benchmark that measures the wrong thing is worse than none."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sdengine
from sdengine.formats import open_index
from tests.parity.reference_upscalers import Rrdb

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of bench/, which are scripts beside each other and no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    names = ("shapes", "shapes_dit", "measuring", "synthetic_gguf", "synthetic")
    names += ("step", "picture", "control", "upscale")
    modules = {name: __import__(name) for name in names}
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    return modules


@pytest.fixture
def tiny(bench: dict[str, ModuleType]) -> object:
    return bench["shapes"].Size(
        unet_channels=(32, 64, 64, 64),
        unet_blocks=1,
        vae_channels=(32, 32, 32, 32),
        vae_blocks=1,
        text_layers=1,
        vocabulary=600,
    )


def test_full_size_is_stable_diffusion_15(bench: dict[str, ModuleType]) -> None:
    shapes = bench["shapes"]
    counts = {
        part.__name__: sum(math.prod(shape) for _, shape in part(shapes.FULL))
        for part in (shapes.unet, shapes.autoencoder, shapes.text_encoder)
    }
    # Of diffusers' and transformers' classes with Stable Diffusion 1.5's configuration.
    assert counts == {"unet": 859520964, "autoencoder": 83653863, "text_encoder": 123060480}
    names = [name for name, _ in shapes.checkpoint()]
    assert len(names) == len(set(names)) == 686 + 248 + 196


def test_full_size_is_stable_diffusion_xl(bench: dict[str, ModuleType]) -> None:
    shapes = bench["shapes"]
    parts = (shapes.unet, shapes.text_encoder, shapes.second_text_encoder)
    counts = {
        part.__name__: sum(math.prod(shape) for _, shape in part(shapes.SDXL)) for part in parts
    }
    # Of diffusers' and transformers' classes with the published configuration.
    assert counts == {
        "unet": 2567463684,
        "text_encoder": 123060480,
        "second_text_encoder": 694659840,
    }
    names = [name for name, _ in shapes.checkpoint(shapes.SDXL)]
    assert len(names) == len(set(names)) == 2513  # the table of docs/model-files.md


def test_a_picture_of_two_text_encoders(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = bench["shapes"].Size(
        unet_channels=(64, 128),
        unet_blocks=1,
        unet_transformers=(0, 2),
        middle_transformers=2,
        linear_projections=True,
        label_width=128 + 6 * 256,
        vae_channels=(32, 32, 32, 32),
        vae_blocks=1,
        text_width=64,
        text_layers=2,
        second_text_width=128,
        second_text_layers=2,
        vocabulary=600,
    )
    bench["synthetic"].write_checkpoint(path, size)
    bench["synthetic"].write_tokenizer(tmp_path / "tokenizer", 600)
    assert sdengine.inspect(path).to_dict()["title"] == "Stable Diffusion XL"
    arguments = argparse.Namespace(
        model=str(path), threads=1, size=64, steps=2, guidance=5.0, tiled=True
    )
    report = bench["picture"].measure(arguments)
    json.dumps(report)
    assert len(report["steps"]["seconds"]) == 2
    memory = [report[f"memory_{stage}"] for stage in ("loaded", "text", "steps")]
    assert memory == sorted(memory)
    assert report["peak_memory"] >= memory[-1] > report["denoiser_activations"] > 0
    line = bench["picture"].row(
        {**report, "model": "sdxl", "weight_type": "f16", "size": 64, "guidance": 5.0}
    )
    assert len(line.split()) == 13
    assert report["peak_memory"] > report["unmapped_peak"] >= report["unmapped_steps"] > 0


def test_full_size_transformers(bench: dict[str, ModuleType]) -> None:
    dit = bench["shapes_dit"]
    counts = {
        name: sum(math.prod(shape) for _, shape in parameters)
        for name, parameters in {
            "flux": dit.flux(dit.Flux()),
            "mmdit": dit.mmdit(dit.MMDiT()),
            "t5": dit.t5(dit.T5()),
        }.items()
    }
    # Of diffusers' and transformers' classes with the published configurations, and SD3.5's table of positions.
    assert counts == {"flux": 11901408320, "mmdit": 2243171520 + 384 * 384 * 1536, "t5": 4762310656}


@pytest.mark.parametrize("weight_type", ["q4_0", "q8_0"])
@pytest.mark.parametrize("kind", ["flux", "mmdit"])
def test_a_picture_of_a_transformer(
    bench: dict[str, ModuleType], tmp_path: Path, kind: str, weight_type: str
) -> None:
    dit, path = bench["shapes_dit"], tmp_path / "model.gguf"
    denoiser = (
        dit.Flux(256, 128, 1, 2, 64)
        if kind == "flux"
        else dit.MMDiT(128, 64, 2, 1, 192 * 192, 2048)
    )
    whole = dit.Whole(
        denoiser,
        dit.T5(denoiser.context_width, 64, 2, 32, 2, 200),
        bench["shapes"].Size(
            vae_channels=(32, 32, 32, 32),
            vae_blocks=1,
            text_width=768,  # the pooled texts tell families apart
            text_layers=2,
            second_text_width=1280,
            second_text_layers=2,
            vocabulary=600,
            latent_channels=16,
        ),
    )
    bench["synthetic_gguf"].write_gguf(path, list(dit.checkpoint(whole)), weight_type)
    bench["synthetic"].write_tokenizer(tmp_path / "tokenizer", 600)
    reader = "tokenizer_2" if kind == "flux" else "tokenizer_3"
    bench["synthetic_gguf"].write_t5_tokenizer(tmp_path / reader, 200)
    arguments = argparse.Namespace(
        model=str(path), threads=1, size=64, steps=1, guidance=1.0, tiled=False
    )
    report = bench["picture"].measure(arguments)
    assert len(report["steps"]["seconds"]) == 1


def test_values_keep_activations_near_one(
    bench: dict[str, ModuleType], tiny: object, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    bench["synthetic"].write_checkpoint(path, tiny)
    index = open_index(path)
    assert set(index.tensors) == {name for name, _ in bench["shapes"].checkpoint(tiny)}

    def values(name: str) -> np.ndarray:
        entry = index.tensors[name]
        found = np.fromfile(path, np.float16, entry.nbytes // 2, offset=entry.offset)
        return found.astype(np.float32).reshape(entry.shape)

    kernel = values("model.diffusion_model.input_blocks.1.0.in_layers.2.weight")
    assert kernel.std() == pytest.approx(1 / math.sqrt(32 * 9), rel=0.05)
    assert np.unique(kernel).size > kernel.size // 10
    assert (values("model.diffusion_model.out.0.weight") == 1).all()
    assert (values("model.diffusion_model.out.0.bias") == 0).all()


def test_pool_of_values_is_continued_where_it_ends(
    bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench["synthetic"], "_POOL", 64)
    pieces = list(bench["synthetic"]._values([("a.weight", (10, 20)), ("b.bias", (3,))], seed=0))
    assert sum(len(piece) for piece in pieces) == 203
    assert all(np.isfinite(piece).all() for piece in pieces)


def test_step_measures_what_it_says(
    bench: dict[str, ModuleType], tiny: object, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    bench["synthetic"].write_checkpoint(path, tiny)
    bench["synthetic"].write_tokenizer(tmp_path / "tokenizer", 600)
    arguments = argparse.Namespace(
        model=str(path), threads=1, size=64, repeats=2, guided=True, vae=True
    )
    report = bench["step"].measure(arguments)
    json.dumps(report)
    assert len(report["unet"]["seconds"]) == len(report["unet_guided"]["seconds"]) == 2
    assert report["unet_graphs_built"] == 1
    assert report["peak_memory"] >= report["unet_peak_memory"] > report["unet_activations"] > 0
    assert np.isfinite(report["vae_probe"]).all()

    latents, context = bench["measuring"].denoiser_inputs(64)
    pipe = sdengine.load(path, threads=1)
    noise = pipe.predict(latents, bench["measuring"].TIMESTEP, sdengine.Conditioning(context))
    assert report["unet_probe"] == bench["measuring"].probe(noise)
    line = bench["step"].row({**report, "weight_type": "f16", "size": 64})
    assert len(line.split()) == len(bench["step"].HEADINGS.split()) // 2 + 2


def test_full_size_networks_beside_the_model(bench: dict[str, ModuleType]) -> None:
    shapes = bench["shapes"]
    counts = [
        sum(math.prod(shape) for _, shape in parameters)
        for parameters in (shapes.controlnet(shapes.FULL), shapes.upscaler())
    ]
    # Of diffusers' ControlNetModel with Stable Diffusion 1.5's configuration, and of RealESRGAN_x4plus.
    assert counts == [361279120, 16697987]


@pytest.mark.parametrize("nets", [0, 2])
def test_control_measures_what_it_says(
    bench: dict[str, ModuleType], tiny: object, tmp_path: Path, nets: int
) -> None:
    path = tmp_path / "model.safetensors"
    bench["synthetic"].write_checkpoint(path, tiny)
    bench["synthetic"].write_tokenizer(tmp_path / "tokenizer", 600)
    files = [str(tmp_path / f"{number}.safetensors") for number in range(nets)]
    for seed, file in enumerate(files):
        parameters = list(bench["shapes"].controlnet(tiny))
        bench["synthetic"].write_parameters(Path(file), parameters, seed)
    arguments = argparse.Namespace(
        model=str(path), controlnets=files, threads=1, size=64, steps=2, guidance=2.0
    )
    report = bench["control"].measure(arguments)
    json.dumps(report)
    assert len(report["steps"]["seconds"]) == 2
    assert report["memory_steps"] >= report["memory_text"] > 0
    assert report["finite"]
    result = {**report, "nets": nets}
    line = bench["control"].row(result, result).split()
    assert len(line) == len(bench["control"].HEADINGS.split())
    assert (line[0], line[3]) == (str(nets), "1.00")


def test_upscale_compares_the_same_network(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "upscaler.safetensors"
    parameters = list(bench["shapes"].upscaler(8, 4, 2))
    bench["synthetic"].write_parameters(path, parameters)
    report = bench["upscale"].measure(path, size=16, threads=1, repeats=2)
    json.dumps(report)
    assert report["error"] <= 1e-4
    assert len(report["torch"]["seconds"]) == len(report["sdengine"]["seconds"]) == 2
    assert report["ratio_wall"] > 0
    assert report["activations"] > 0
    reference = Rrdb(8, 4, 2, 2, 1, False).eval()
    weights = load_file(path)
    reference.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    image = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        expected, found = reference(image), bench["upscale"].torch_network(path)(image)
    torch.testing.assert_close(found, expected)


def test_laps_leave_warm_ups_out(
    bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 9.0, 10.0, 13.0, 15.0])
    processor = iter([0.0, 18.0, 19.0, 22.0, 24.0])
    monkeypatch.setattr(bench["measuring"].time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(bench["measuring"].time, "process_time", lambda: next(processor))
    outputs = iter("abcd")
    summary, last = bench["measuring"].timed(lambda: next(outputs), repeats=3)
    assert summary == {"first": 9.0, "seconds": [1.0, 3.0, 2.0], "median": 2.0, "cpu_median": 2.0}
    assert last == "d"


def test_a_failed_child_says_why(bench: dict[str, ModuleType]) -> None:
    with pytest.raises(RuntimeError, match="--no-such-option"):
        bench["measuring"].child("synthetic.py", ["--no-such-option"], threads=1)


def test_machine_facts_name_a_file(bench: dict[str, ModuleType]) -> None:
    facts = bench["measuring"].machine()
    assert facts["cores"] >= 1
    assert bench["measuring"].slug({"processor": "AMD EPYC (Zen 4)", "cores": 4}) == (
        "amd-epyc-zen-4-4-cores"
    )
