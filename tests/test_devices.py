"""Devices by name: what there is, what is missing, and libraries that cannot be used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.api import DEMO_MODEL
from sdengine.devices import ROLES, open_device, open_devices, parse_devices, preferred_device
from sdengine.errors import DeviceError, ParameterError

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "ggml-cuda.dll" if sys.platform == "win32" else "libggml-cuda.so"


def test_the_cpu_is_last_and_known() -> None:
    found = sdengine.devices()
    cpu = found[-1]
    assert (cpu.name, cpu.kind, cpu.integrated) == ("cpu", "cpu", True)
    assert cpu.threads >= 1
    assert 0 < cpu.free_memory <= cpu.memory
    assert cpu.description
    assert len({device.name for device in found}) == len(found)
    assert preferred_device() in {device.name for device in found}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:77", 'no device "cuda:77"; this machine has .*cpu.*(sdengine-cuda13|$)'),
        ("metal:9", 'no device "metal:9"'),
        ("tpu", "Kinds of devices are cpu, cuda, metal and vulkan"),
        ("", "no device"),
        (3, "named by a text, not 3"),
    ],
)
def test_a_device_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        open_device(name)


def test_a_device_for_each_part() -> None:
    same = open_devices("cpu", 1)
    assert same.denoiser is same.text is same.vae
    assert parse_devices("cpu") == dict.fromkeys(ROLES, "cpu")
    parts = {"denoiser": "cpu", "text": "auto", "vae": "cpu"}
    assert parse_devices({"denoiser": "cpu", "vae": "cpu"}) == parts
    assert parse_devices(" denoiser = cpu, vae=cpu") == parts
    for wrong in ({"unet": "cpu"}, "unet=cpu", "denoiser=cpu,"):
        with pytest.raises(ParameterError, match="parts of a model are denoiser, text, vae"):
            parse_devices(wrong)
    with pytest.raises(DeviceError, match="no device"):
        open_devices({"vae": "cuda:77"})


def test_a_pipeline_takes_a_device_for_each_part() -> None:
    options: dict[str, Any] = {"seed": 1, "steps": 1, "width": 64, "height": 64}
    pictures = [
        np.asarray(
            sdengine.load(DEMO_MODEL, device=device).generate("a red circle", **options).image
        )
        for device in ("cpu", {"denoiser": "cpu", "text": "cpu"}, "vae=cpu,text=cpu,denoiser=cpu")
    ]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()


REPORT = """
import sys, sdengine
from sdengine.devices import open_device
print([device.name for device in sdengine.devices()])
for backend in sdengine.unusable_backends():
    print(backend.kind, backend.library, backend.reason)
assert "sdengine_backends" not in sys.modules
try:
    open_device("cuda:0")
except sdengine.DeviceError as error:
    print("DeviceError:", error)
"""


def report(root: Path) -> str:
    """What a process says that finds the plugin folder `root / sdengine_backends`."""
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(root)])
    command = [sys.executable, "-c", REPORT]
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("library", ["garbage", "empty", "folder", "no backend"])
def test_a_library_that_cannot_be_used_is_a_message(library: str, tmp_path: Path) -> None:
    folder = tmp_path / "sdengine_backends" / "cuda"
    folder.mkdir(parents=True)
    if library == "garbage":
        (folder / LIBRARY).write_bytes(b"\x7fELF" + bytes(range(256)) * 16)
    elif library == "empty":
        (folder / LIBRARY).touch()
    elif library == "folder":
        (folder / LIBRARY).mkdir()
    else:
        from numpy._core import _multiarray_umath

        (folder / LIBRARY).write_bytes(Path(_multiarray_umath.__file__).read_bytes())
    text = report(tmp_path)
    assert "'cpu']" in text.splitlines()[0]
    assert f"cuda {folder / LIBRARY} " in text
    assert 'DeviceError: there is no device "cuda:0"' in text
    assert "it needs an NVIDIA card" in text


def test_no_plugin_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "sdengine_backends" / "cuda").mkdir(parents=True)
    # Never the working directory: a library there is not looked at.
    (tmp_path / LIBRARY).write_bytes(b"garbage")
    text = report(tmp_path)
    assert str(tmp_path) not in text
    assert "pip install sdengine-cuda13" in text


def test_plugins_have_the_version_of_the_package() -> None:
    line = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert line is not None
    plugins = sorted((ROOT / "packaging").glob("*/pyproject.toml"))
    assert [path.parent.name for path in plugins] == ["cuda13", "vulkan"]
    for path in plugins:
        assert line[0] in path.read_text()
        assert f'"sdengine=={line[1]}"' in path.read_text()
