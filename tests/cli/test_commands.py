"""The other commands, and the program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sdengine.images import save

from .conftest import Library, Run


# ------------------------------ inspect
def test_inspect_a_model(run: Run, library: Library) -> None:
    result = run("inspect", "m.gguf")
    assert result.exit_code == 0
    assert result.stdout == "family: sd1\ntitle: evil \\x1b[31m title\n"  # no escape sequences
    assert json.loads(run("inspect", "m.gguf", "--json").stdout) == {
        "family": "sd1",
        "path": "m.gguf",
    }
    assert library.calls[0] == ("inspect", (Path("m.gguf"),), {})


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp"])
def test_inspect_a_picture(run: Run, library: Library, suffix: str) -> None:
    text = "a cat\nNegative prompt: \x1b]0;title\nSteps: 3, Seed: 4, Size: 8x8"
    save(Image.new("RGB", (8, 8)), f"a.{suffix}", text)
    save(Image.new("RGB", (8, 8)), f"b.{suffix}")
    assert run("inspect", f"a.{suffix}").stdout == text.replace("\x1b", "\\x1b") + "\n"
    assert json.loads(run("inspect", f"a.{suffix}", "--json").stdout)["seed"] == 4
    assert run("inspect", f"b.{suffix}").stdout == "no generation parameters\n"
    assert json.loads(run("inspect", f"b.{suffix}", "--json").stdout) == {}
    assert library.calls == []


def test_inspect_a_missing_picture(run: Run) -> None:
    result = run("inspect", "absent.png")
    assert (result.exit_code, result.stderr) == (2, "error: absent.png: there is no such file\n")


# ------------------------------ convert, devices, bench
def test_convert(run: Run, library: Library) -> None:
    arguments = ("--type", "q4_0", "--rule", "vae.*=f16", "--rule", "kind:kernel=q8_0", "-f")
    arguments += ("--default", "guidance=3.5", "--default", "steps=12", "--default", "sampler=heun")
    result = run("convert", "in", "out.gguf", *arguments, "--vae", "v", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout == "out.gguf  2.50 GB  (q4_0 x 200, f32 x 3)\n"
    options = {"weight_type": "q4_0", "vae": "v", "threads": 2, "overwrite": True}
    options["rules"] = ["vae.*=f16", "kind:kernel=q8_0"]
    options["defaults"] = {"guidance": 3.5, "steps": 12, "sampler": "heun"}
    assert library.calls == [("convert", ("in", "out.gguf"), options)]


def test_tokenizers_by_name(run: Run, library: Library) -> None:
    named = ("--tokenizer", "clip_l=a", "--tokenizer", "t5xxl=b")
    assert run("generate", "a", "-m", "m", *named).exit_code == 0
    assert library.calls[0] == ("load", ("m",), {"tokenizer": {"clip_l": "a", "t5xxl": "b"}})
    result = run("generate", "a", "-m", "m", *named, "--tokenizer", "c")
    assert result.exit_code == 2
    assert "NAME=PATH each time" in result.stderr


def test_convert_defaults_and_missing_tokenizer(run: Run, library: Library) -> None:
    result = run("convert", "bare.safetensors", "out.gguf")
    assert library.calls[0][2] == {"rules": None, "defaults": None, "overwrite": False}
    assert "--tokenizer" in result.stderr


def test_convert_does_not_replace_a_file_unasked(run: Run, library: Library) -> None:
    Path("out.gguf").write_text("old")
    result = run("convert", "in", "out.gguf")
    assert (result.exit_code, library.calls) == (2, [])
    assert "--force" in result.stderr


def test_devices(run: Run) -> None:
    assert run("devices").stdout.splitlines() == [
        "cpu  A Fast Chip, 8 threads, 64.00 GB, 32.00 GB free",
        "x  ?",
        "cuda cannot be used: libcuda.so.1: no such file (libggml-cuda.so); it needs a driver",
    ]
    found = json.loads(run("devices", "--json").stdout)
    assert found["devices"][0]["description"] == "A Fast Chip"
    assert found["unusable"][0]["kind"] == "cuda"


def test_bench(run: Run, library: Library) -> None:
    result = run("bench", "-m", "m.gguf", "--repeat", "2", "--steps", "3", "-b", "2")
    assert result.exit_code == 0, result.output
    assert [name for name, _, _ in library.calls] == ["load"] + ["generate"] * 3
    assert "demo, 8x8, 3 steps of euler, batch 2" in result.stdout
    assert "denoise        0.500 s" in result.stdout
    assert "123.0 MB" in result.stdout
    found = json.loads(run("bench", "--json", "--repeat", "1").stdout)
    assert found["seconds"]["total"] == 0.8
    assert len(found["runs"]) == 1


# ------------------------------ the program
def test_help_and_version(run: Run, library: Library) -> None:
    for flag in ("--help", "-h"):
        result = run(flag)
        assert result.exit_code == 0
        for command in ("generate", "inspect", "convert", "devices", "bench"):
            assert command in result.stdout
            assert run(command, flag).exit_code == 0
    assert run("--version").stdout == "sdengine 9.8.7\n"
    assert library.calls == []


SLOW_PROGRAM = """
import time, sdengine
from sdengine.cli import main
def generate(prompt, **options):
    print("started", flush=True)
    time.sleep(60)
sdengine.generate = generate
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_control_c_in_a_real_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PROGRAM, "generate", "a"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, b"interrupted\n")
    assert os.listdir(tmp_path) == []
