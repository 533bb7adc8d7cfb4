"""`sdengine.convert`: one self-contained GGUF from every layout, in every type."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from sdengine.conversion import Conversion, ConvertEvent, convert
from sdengine.errors import ParameterError, UnsupportedModelError, WeightsError
from sdengine.formats import open_index
from sdengine.loading import plan_model
from sdengine.loading.weight_types import WEIGHT_TYPES
from tests import models

# Largest relative L2 error of normal values with each type (ggml's own quantization).
ERRORS = {
    "f32": 0.0,
    "f16": 5e-4,
    "bf16": 4e-3,
    "q8_0": 0.008,
    "q6_k": 0.025,
    "q5_k": 0.05,
    "q5_1": 0.05,
    "q5_0": 0.06,
    "q4_k": 0.09,
    "q4_1": 0.11,
    "q4_0": 0.12,
    "q3_k": 0.20,
    "q2_k": 0.35,
}
LAYOUTS = ["diffusers", "ldm", "ckpt", "all-in-one", "city96"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_sd1_folder(tmp_path_factory.mktemp("convert") / "model", seed=6)


@pytest.fixture(scope="module")
def originals(folder: Path) -> dict[str, np.ndarray]:
    """LDM name -> float32 values."""
    return {name: tensor.numpy() for name, tensor in models.ldm_state_dict(folder).items()}


def source(layout: str, folder: Path, out: Path) -> tuple[Path, dict[str, Path]]:
    """The model in a layout, and the arguments that complete it."""
    tokenizer = {"tokenizer": folder / "tokenizer"}
    parts = {"vae": folder / "vae", "text_encoders": folder / "text_encoder"}
    if layout == "diffusers":
        return folder, {}
    if layout == "ldm":
        return models.write_ldm_safetensors(folder, out / "in.safetensors"), tokenizer
    if layout == "ckpt":
        return models.write_ldm_ckpt(folder, out / "in.ckpt"), tokenizer
    if layout == "all-in-one":
        return models.write_allinone_gguf(folder, out / "in.gguf", "f32"), tokenizer
    return models.write_city96_gguf(folder, out / "in.gguf", "f32"), parts


def read_back(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a GGUF as float32, dequantized by gguf-py, in its original shape."""
    reader = gguf.GGUFReader(path)
    entries = open_index(path).tensors
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(entries[t.name].shape)
        for t in reader.tensors
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_bit_for_bit(
    folder: Path, originals: dict[str, np.ndarray], tmp_path: Path, layout: str
) -> None:
    src, arguments = source(layout, folder, tmp_path)
    result = convert(src, tmp_path / "out.gguf", "f32", **arguments)
    found = read_back(result.path)
    assert found.keys() == originals.keys()
    for name, expected in originals.items():
        assert found[name].shape == expected.shape
        assert np.array_equal(found[name], expected), name
    assert result.has_tokenizer
    assert result.nbytes == result.path.stat().st_size


def test_half_precision_bit_for_bit(
    folder: Path, originals: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = read_back(convert(folder, tmp_path / "out.gguf", "f16").path)
    for name, expected in originals.items():
        rounded = expected if expected.ndim < 2 else expected.astype(np.float16).astype(np.float32)
        assert np.array_equal(found[name], rounded), name


@pytest.mark.parametrize("dtype", WEIGHT_TYPES)
def test_every_type(
    folder: Path, originals: dict[str, np.ndarray], tmp_path: Path, dtype: str
) -> None:
    # Everything that can take the type takes it; only few rows of the tiny model hold 256 values.
    result = convert(folder, tmp_path / "out.gguf", dtype, {"*": dtype})
    assert dtype in result.histogram
    found = read_back(result.path)
    for name, expected in originals.items():
        error = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
        assert error <= ERRORS[result.types[name].dtype], (name, result.types[name])


def test_the_result_loads_as_the_same_model(folder: Path, tmp_path: Path) -> None:
    original = plan_model(folder)
    plan = plan_model(convert(folder, tmp_path / "out.gguf", "q4_0").path)
    assert plan.unused == ()
    assert plan.defaults == original.defaults
    assert plan.scheduler == original.scheduler
    for name, part in original.components.items():
        assert plan.components[name].config == part.config
        assert [b.name for b in plan.components[name].bindings] == [b.name for b in part.bindings]
    tokenizer = plan.tokenizers["text_encoder"].open()
    text = "a red circle, on 2 blue squares"
    assert tokenizer.encode(text) == original.tokenizers["text_encoder"].open().encode(text)


def test_converting_again_changes_nothing(folder: Path, tmp_path: Path) -> None:
    first = convert(folder, tmp_path / "a.gguf", "q8_0").path
    second = convert(first, tmp_path / "b.gguf", "q8_0").path
    a, b = read_back(first), read_back(second)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert open_index(first).metadata.keys() == open_index(second).metadata.keys()


def test_a_file_can_be_converted_onto_itself(folder: Path, tmp_path: Path) -> None:
    path = convert(folder, tmp_path / "m.gguf", "f16").path
    before = path.stat().st_size
    convert(path, path, "q4_0")
    assert path.stat().st_size < before
    assert plan_model(path).unused == ()


def test_names_are_those_of_other_engines(
    folder: Path, originals: dict[str, np.ndarray], tmp_path: Path
) -> None:
    result = convert(folder, tmp_path / "m.gguf", "q8_0", {"kind:kernel": "f16"})
    reader = gguf.GGUFReader(result.path)
    assert {t.name: tuple(t.shape.tolist()[::-1]) for t in reader.tensors} == {
        n: t.shape for n, t in originals.items()
    }
    assert reader.fields["general.architecture"].contents() == "sd1"
    assert reader.fields["general.quantization_version"].contents() == 2


def test_rules_and_reasons(folder: Path, tmp_path: Path) -> None:
    result = convert(
        folder, tmp_path / "m.gguf", "q4_0", ["unet.mid_block.*attn1.to_q.weight=q8_0"]
    )
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1."
    assert result.types[f"{block}to_q.weight"].dtype == "q8_0"
    assert result.types[f"{block}to_q.weight"].reason == "the caller's rule"
    assert result.types[f"{block}to_k.weight"].dtype == "q4_0"
    assert result.types["model.diffusion_model.input_blocks.0.0.weight"].dtype == "f16"
    assert sum(result.histogram.values()) == len(result.types) == 536


def test_smaller_types_make_smaller_files(folder: Path, tmp_path: Path) -> None:
    sizes = [
        convert(folder, tmp_path / "m.gguf", dtype).nbytes
        for dtype in ("f32", "f16", "q8_0", "q4_0")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_without_a_tokenizer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    path = models.write_ldm_safetensors(folder, tmp_path / "m.safetensors")
    result = convert(path, tmp_path / "m.gguf")
    assert not result.has_tokenizer
    assert not any("tokenizer" in key for key in open_index(result.path).metadata)


def test_defaults_of_the_caller_s_choice(folder: Path, tmp_path: Path) -> None:
    chosen = {"width": 128, "steps": 9, "guidance": 5, "sampler": "dpm++2m"}
    found = plan_model(convert(folder, tmp_path / "m.gguf", defaults=chosen).path).defaults
    assert found == dataclasses.replace(plan_model(folder).defaults, **chosen)
    assert type(found.guidance) is float


@pytest.mark.parametrize(
    "defaults", [{"size": 5}, {"width": 64.0}, {"steps": True}, {"guidance": "7"}, {"sampler": 3}]
)
def test_defaults_that_cannot_be(folder: Path, tmp_path: Path, defaults: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(defaults))):
        convert(folder, tmp_path / "m.gguf", defaults=defaults)
    assert list(tmp_path.iterdir()) == []


# ------------------------------ progress and failure
def test_progress(folder: Path, tmp_path: Path) -> None:
    events: list[ConvertEvent] = []
    result = convert(folder, tmp_path / "m.gguf", callback=events.append)
    assert [event.index for event in events] == list(range(1, 537))
    assert [event.name for event in events] == list(result.types)
    assert events[-1].bytes_done == events[-1].bytes_total
    assert all(event.count == 536 for event in events)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_cancelling_leaves_the_old_file(
    folder: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")

    def stop(event: ConvertEvent) -> None:
        if event.index == 100:
            raise error("enough")

    with pytest.raises(error):
        convert(folder, path, callback=stop)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_for_what_cannot_be_converted(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with pytest.raises(UnsupportedModelError):
        convert(folder / "vae", target)
    with pytest.raises(WeightsError, match="also needs"):
        convert(models.write_city96_gguf(folder, tmp_path / "u.gguf", "f32"), target)
    assert not target.exists()


@pytest.mark.parametrize("dtype", ["q9_0", "", "iq2_xs", "i8", None])
def test_unknown_types(folder: Path, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ParameterError, match="choose one of f32, f16"):
        convert(folder, tmp_path / "m.gguf", dtype)


def test_existing_files_can_be_protected(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ParameterError, match="exists"):
        convert(folder, path, overwrite=False)
    with pytest.raises(ParameterError, match="exists"):
        convert(folder, tmp_path)
    assert path.read_bytes() == b"old"


def test_two_conversions_at_once(folder: Path, tmp_path: Path) -> None:
    results: list[Conversion] = []
    targets = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    threads = [
        threading.Thread(target=lambda t=t: results.append(convert(folder, t, "q4_0", threads=1)))
        for t in targets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    a, b = (read_back(path) for path in targets)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_folder_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    from sdengine.errors import OutputError

    blocked = tmp_path / "file"
    blocked.write_bytes(b"a file where a folder should be")
    with pytest.raises(OutputError):
        convert(folder, blocked / "m.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_full_checkpoint_in_half_precision(folder: Path, tmp_path: Path) -> None:
    path = models.write_ldm_safetensors(folder, tmp_path / "m.safetensors", torch.bfloat16)
    result = convert(path, tmp_path / "m.gguf", "bf16", tokenizer=folder / "tokenizer")
    expected = models.ldm_state_dict(folder)
    for name, values in read_back(result.path).items():
        assert np.array_equal(values, expected[name].to(torch.bfloat16).float().numpy()), name
