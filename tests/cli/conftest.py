"""A pretended library, and the command line over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import sdengine
from sdengine.cli import main
from sdengine.devices import Device, UnusableBackend
from sdengine.errors import (
    ParameterError,
)


@dataclass
class Library:
    """Stands in for sdengine; remembers every call."""

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    error: BaseException | None = None
    colours: tuple[int, int, int] | None = (255, 0, 128)
    looked: list[tuple[str | None, bool]] = field(default_factory=list)

    def _called(self, name: str, *args: Any, **options: Any) -> None:
        self.calls.append((name, args, options))
        if self.error:
            raise self.error

    def generate(self, *args: Any, **options: Any) -> SimpleNamespace:
        callback = options.pop("callback", None)
        self._called("generate", *args, **options)
        steps = options.get("steps") or 4
        for step in range(1, steps + 1):
            if callback:
                preview = self.preview
                callback(
                    SimpleNamespace(step=step, steps=steps, sigma=1 - step / steps, preview=preview)
                )
        seed = options.get("seed") or 7
        seeds = [seed + i for i in range(options.get("batch_size") or 1)]
        common = {"prompt": args[0], "model": "demo", "width": 8, "height": 8, "sampler": "euler"}
        return SimpleNamespace(
            images=[Image.new("RGB", (8, 8)) for _ in seeds],
            seeds=seeds,
            timings={"encode": 0.1, "denoise": 0.5, "decode": 0.2, "total": 0.8},
            peak_memory=123_000_000,
            metadata=[{**common, "seed": s, "steps": steps} for s in seeds],
        )

    def preview(self, method: str | None = None, *, noisy: bool = False) -> list[Image.Image]:
        self.looked.append((method, noisy))
        if self.colours is None:
            raise ParameterError("there are no preview colours for Model X")
        return [Image.new("RGB", (16, 16), self.colours), Image.new("RGB", (16, 16))]

    def load(self, *args: Any, **options: Any) -> SimpleNamespace:
        self._called("load", *args, **options)
        return SimpleNamespace(generate=self.generate, path=args[0])

    def convert(self, *args: Any, **options: Any) -> SimpleNamespace:
        callback = options.pop("callback")
        self._called("convert", *args, **options)
        callback(SimpleNamespace(index=1, count=2, name="a.weight"))
        return SimpleNamespace(
            path=Path(args[1]),
            nbytes=2_500_000_000,
            histogram={"q4_0": 200, "f32": 3},
            has_tokenizer="bare" not in args[0],
            needs_tokenizer=True,
        )

    def inspect(self, *args: Any) -> Any:
        self._called("inspect", *args)

        class Info:
            def to_dict(self) -> dict[str, Any]:
                return {"family": "sd1", "path": args[0]}

            def __str__(self) -> str:
                return "family: sd1\ntitle: evil \x1b[31m title"

        return Info()

    def devices(self) -> list[Any]:
        self._called("devices")
        return [
            Device("cpu", "cpu", "A Fast Chip", 8, 64_000_000_000, 32_000_000_000),
            Device("x", "cpu", "?", 0, 0),
        ]

    def unusable_backends(self) -> list[Any]:
        missing = ("libcuda.so.1: no such file", "it needs a driver")
        return [UnusableBackend("cuda", "libggml-cuda.so", *missing)]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    for name in ("generate", "load", "convert", "inspect", "devices", "unusable_backends"):
        monkeypatch.setattr(sdengine, name, getattr(library, name), raising=False)
    monkeypatch.setattr(sdengine, "__version__", "9.8.7", raising=False)
    return library


Run = Callable[..., Result]


@pytest.fixture
def run(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])
