"""Bad input through the public API: a typed error with a message that helps, and a process that lives on."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdengine
from tests.models import tiny_sd1_folder, write_allinone_gguf, write_ldm_safetensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1_folder(tmp_path_factory.mktemp("bad") / "model", seed=4)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> sdengine.Pipeline:
    return sdengine.load(folder)


@pytest.fixture
def single(folder: Path, tmp_path: Path) -> Path:
    return write_ldm_safetensors(folder, tmp_path / "model.safetensors")


@pytest.fixture
def gguf(folder: Path, tmp_path: Path) -> Path:
    return write_allinone_gguf(folder, tmp_path / "model.gguf", "q8_0")


def edit_header(path: Path, change: object) -> None:
    """Rewrite the JSON header of a safetensors file; `change` edits the dict."""
    blob = path.read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    change(header)  # type: ignore[operator]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob[8 + length :])


def edit_tensors(path: Path, change: object) -> None:
    tensors = load_file(path)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path)


# ------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("keep", [0, 4, 20, 4000, 100_000])
def test_truncated_safetensors(single: Path, keep: int) -> None:
    single.write_bytes(single.read_bytes()[:keep])
    with pytest.raises(sdengine.FormatError):
        sdengine.load(single)


@pytest.mark.parametrize("keep", [0, 3, 20, 4000, 100_000])
def test_truncated_gguf(gguf: Path, keep: int) -> None:
    gguf.write_bytes(gguf.read_bytes()[:keep])
    with pytest.raises(sdengine.FormatError):
        sdengine.load(gguf)


def test_wrong_magic(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGML" + bytes(4096))
    with pytest.raises(sdengine.FormatError, match=r"model\.gguf"):
        sdengine.load(path)


def test_header_length_that_lies(single: Path) -> None:
    blob = bytearray(single.read_bytes())
    blob[:8] = struct.pack("<Q", 2**40)
    single.write_bytes(blob)
    with pytest.raises(sdengine.FormatError):
        sdengine.load(single)


def test_tensor_offset_out_of_range(single: Path) -> None:
    def change(header: dict[str, dict[str, list[int]]]) -> None:
        entry = header["model.diffusion_model.out.2.weight"]
        entry["data_offsets"] = [v + 2**33 for v in entry["data_offsets"]]

    edit_header(single, change)
    with pytest.raises(sdengine.FormatError, match=r"out\.2\.weight"):
        sdengine.load(single)


def test_unknown_quant_type(gguf: Path) -> None:
    blob = bytearray(gguf.read_bytes())
    name = b"model.diffusion_model.out.2.weight"
    at = blob.index(name) + len(name)
    (axes,) = struct.unpack_from("<I", blob, at)
    struct.pack_into("<I", blob, at + 4 + 8 * axes, 250)
    gguf.write_bytes(blob)
    with pytest.raises(sdengine.FormatError, match="250"):
        sdengine.load(gguf)


def test_shape_mismatch(single: Path, folder: Path) -> None:
    name = "model.diffusion_model.out.2.weight"
    edit_tensors(
        single, lambda tensors: tensors.update({name: np.zeros((4, 16, 3, 3), np.float32)})
    )
    with pytest.raises(sdengine.WeightsError, match=r"out\.2\.weight.*\[4, 16, 3, 3\].*expected"):
        sdengine.load(single, tokenizer=folder / "tokenizer")


def test_missing_tensor_names_the_nearest(single: Path, folder: Path) -> None:
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name.replace("in_layers.2", "in_layer.2")] = tensors.pop(name)

    edit_tensors(single, change)
    with pytest.raises(
        sdengine.WeightsError, match=r"in_layers\.2\.weight.*missing.*in_layer\.2\.weight"
    ):
        sdengine.load(single, tokenizer=folder / "tokenizer")


def test_nan_weights_are_named(single: Path, folder: Path) -> None:
    name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    edit_tensors(single, lambda tensors: tensors[name].__setitem__((0, 0, 0, 0), np.nan))
    pipe = sdengine.load(single, tokenizer=folder / "tokenizer")
    with pytest.raises(
        sdengine.WeightsError, match=r"mid_block\.resnets\.0\.conv1\.weight' holds NaN"
    ):
        pipe.generate("a circle", width=64, height=64, steps=2)


def test_pickle_that_wants_to_execute(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (marker,))

    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2))
    with pytest.raises(sdengine.FormatError):
        sdengine.load(path)
    assert not marker.exists()


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(sdengine.SDEngineError, match=r"absent\.gguf"):
        sdengine.load(tmp_path / "absent.gguf")


def test_no_tokenizer(single: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(sdengine.TokenizerError, match="tokenizer"):
        sdengine.load(single)


# ------------------------------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 60}, "multiple of 8, not 60; the nearest are 56 and 64"),
        ({"height": 0}, "height must be a whole number from 8"),
        ({"height": -64}, "height must be"),
        ({"width": 10**9}, "width must be"),
        ({"width": 64.0}, "whole number"),
        ({"steps": 0}, "steps must be a whole number from 1 to 1000, not 0"),
        ({"steps": 10**6}, "steps must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"guidance_scale": float("nan")}, "guidance scale must be 0 to 1000, not nan"),
        ({"guidance_scale": -1}, "guidance scale must be 0 to 1000"),
        ({"clip_skip": 9}, "clip_skip must be a whole number from 1 to 3"),
        ({"sampler": "quicksort"}, "quicksort.*euler"),
        ({"schedule": "tomorrow"}, "tomorrow.*karras"),
        ({"weighting": "heavy"}, "weighting must be"),
        ({"latents": np.zeros((1, 4, 9, 9), np.float32)}, "latents"),
    ],
)
def test_parameters_out_of_range(
    pipe: sdengine.Pipeline, options: dict[str, object], message: str
) -> None:
    with pytest.raises(sdengine.ParameterError, match=message):
        pipe.generate("a circle", **{"width": 64, "height": 64, "steps": 1, **options})


def test_parameter_errors_are_value_errors() -> None:
    assert issubclass(sdengine.ParameterError, ValueError)


def test_empty_and_long_prompts(pipe: sdengine.Pipeline) -> None:
    options = {"width": 64, "height": 64, "steps": 1}
    assert pipe.generate("", **options).image.size == (64, 64)
    assert pipe.generate("red " * 400, **options).image.size == (64, 64)
    with pytest.raises(sdengine.ParameterError, match="prompt"):
        pipe.generate("red " * 1_000_000, **options)
    for prompt in (None, 5, [], ["a", 3]):
        with pytest.raises((sdengine.ParameterError, TypeError)):
            pipe.generate(prompt, **options)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit(pipe: sdengine.Pipeline) -> None:
    cond = pipe.encode_prompt("a circle")
    with pytest.raises(sdengine.ParameterError, match="4 channels"):
        pipe.predict(np.zeros((1, 5, 8, 8), np.float32), 1.0, cond)
    with pytest.raises(sdengine.ParameterError, match=r"\[N, C, h, w\]"):
        pipe.predict(np.zeros((4, 8, 8), np.float32), 1.0, cond)
    with pytest.raises(sdengine.NumericError, match="NaN"):
        pipe.predict(np.full((1, 4, 8, 8), np.nan, np.float32), 1.0, cond)
    with pytest.raises(sdengine.ParameterError):
        pipe.decode_latents(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(sdengine.ParameterError):
        pipe.encode_image("no such picture.png")


def test_unwritable_output(pipe: sdengine.Pipeline, tmp_path: Path) -> None:
    from sdengine import images

    picture = pipe.generate("a circle", width=64, height=64, steps=1).image
    with pytest.raises(sdengine.OutputError):
        images.save(picture, tmp_path / "absent" / "out.png")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- being stopped
def test_cancel_from_another_thread(pipe: sdengine.Pipeline) -> None:
    timer = threading.Timer(0.3, pipe.cancel)
    timer.start()
    with pytest.raises(sdengine.Cancelled):
        pipe.generate("a circle", width=256, height=256, steps=900)
    timer.join()
    assert pipe.generate("a circle", width=64, height=64, steps=1).images


def test_callback_that_raises_ends_the_run(pipe: sdengine.Pipeline) -> None:
    class Enough(Exception):
        pass

    seen = []

    def callback(event: sdengine.StepEvent) -> None:
        seen.append(event.step)
        if event.step == 2:
            raise Enough

    with pytest.raises(Enough):
        pipe.generate("a circle", width=64, height=64, steps=5, callback=callback)
    assert seen == [1, 2]


def test_cancel_from_the_callback(pipe: sdengine.Pipeline) -> None:
    with pytest.raises(sdengine.Cancelled):
        pipe.generate(
            "a circle", width=64, height=64, steps=5, callback=lambda event: event.cancel()
        )


# ------------------------------------------------------------------------------------ hostile places
def test_file_shortened_after_loading(single: Path, folder: Path) -> None:
    pipe = sdengine.load(single, tokenizer=folder / "tokenizer")
    os.truncate(single, 5000)
    with pytest.raises(sdengine.FormatError, match="shorter"):
        pipe.generate("a circle", width=64, height=64, steps=1)


def test_file_deleted_after_loading(single: Path, folder: Path) -> None:
    pipe = sdengine.load(single, tokenizer=folder / "tokenizer")
    single.unlink()
    assert pipe.generate("a circle", width=64, height=64, steps=1).images


def test_a_forked_child_is_told_to_load_again(folder: Path) -> None:
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
import sdengine
pipe = sdengine.load({str(folder)!r}, threads=2)
pipe.generate("a", width=64, height=64, steps=1)
child = os.fork()
if child == 0:
    try:
        pipe.generate("a", width=64, height=64, steps=1)
    except sdengine.DeviceError:
        os._exit(7)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7


def test_ctrl_c_stops_a_native_call(folder: Path) -> None:
    code = f"""
import numpy, os, signal, sys, threading, time
import sdengine
pipe = sdengine.load({str(folder)!r})
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    while True:
        pipe.decode_latents(numpy.zeros((8, 4, 128, 128), numpy.float32), tile=0)
except KeyboardInterrupt:
    sys.exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9


def test_paths_that_are_no_text(single: Path, folder: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    odd.mkdir()
    pipe = sdengine.load(single.rename(odd / "model.safetensors"), tokenizer=folder / "tokenizer")
    assert pipe.generate("a circle", width=64, height=64, steps=1).images


def test_networks_too_deep_to_be_real() -> None:
    from sdengine import _core
    from tests.native.test_networks import CLIP

    with pytest.raises(sdengine.WeightsError, match="more than 16384 parameters"):
        _core.parameters("clip_text", {**CLIP, "layers": 10**9})


def test_absurd_numbers_of_threads(folder: Path) -> None:
    assert sdengine.load(folder, threads=512).generate("a", width=64, height=64, steps=1).images
    for threads in (-1, 513, "many"):
        with pytest.raises(sdengine.ParameterError, match="threads"):
            sdengine.load(folder, threads=threads)  # type: ignore[arg-type]


def test_lora_tags_are_not_drawn_as_text(pipe: sdengine.Pipeline) -> None:
    with pytest.raises(sdengine.ParameterError, match="LoRA"):
        pipe.generate("a circle <lora:style:0.8>", width=64, height=64, steps=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": None},
        {"prompt": 5},
        {"negative_prompt": 5},
        {"sampler": 5},
        {"clip_skip": "2"},
        {"clip_skip": 0},
        {"clip_skip": 1.5},
        {"tile": "8"},
        {"tile": 10**30},
        {"latents": "noise"},
        {"latents": [[1.0]]},
        {"latents": np.zeros((1, 4, 8, 8), complex)},
    ],
)
def test_arguments_of_the_wrong_type(pipe: sdengine.Pipeline, arguments: dict[str, object]) -> None:
    with pytest.raises(sdengine.ParameterError):
        pipe.generate(**{"prompt": "a", "width": 64, "height": 64, "steps": 1, **arguments})  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers(pipe: sdengine.Pipeline) -> None:
    result = pipe.generate(
        "a",
        width=np.int64(64),
        height=64,
        steps=np.int32(1),
        seed=np.int64(3),
        guidance_scale=np.float32(2),
    )
    assert result.seeds == [3]


def test_convert_onto_a_device(folder: Path) -> None:
    with pytest.raises(sdengine.ParameterError, match="exists"):
        sdengine.convert(folder, "/dev/null")
    assert not Path("/dev/null").is_file()


def test_an_error_of_a_convert_callback_comes_out(folder: Path, tmp_path: Path) -> None:
    def callback(event: object) -> None:
        raise ConnectionError("mine")

    with pytest.raises(ConnectionError, match="mine"):
        sdengine.convert(folder, tmp_path / "m.gguf", callback=callback)
    assert list(tmp_path.iterdir()) == []
