"""The native core. Arrays are numpy float32 (ids int32) in C order and torch's axis order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from types import ModuleType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float32]

__version__: str
ggml_version: str

kernels: ModuleType
"""The CPU kernels over numpy arrays, for tests and benchmarks."""

# ------------------------------------------------------------------------------------------ weights
@final
class WeightStore:
    """Parameters of one component, mapped from files."""

    def __init__(self) -> None: ...
    def add(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        path: str | PathLike[str],
        offset: int,
        nbytes: int,
        strides: Sequence[int] | None = None,
        transpose: bool = False,
        convert_to: str | None = None,
    ) -> None: ...
    def __contains__(self, name: str) -> bool: ...
    @property
    def owned_bytes(self) -> int: ...
    @property
    def mapped_bytes(self) -> int: ...
    def first_not_finite(self) -> str | None: ...

def transcode(
    dtype: str,
    shape: Sequence[int],
    path: str | PathLike[str],
    offset: int,
    nbytes: int,
    strides: Sequence[int] | None = None,
    transpose: bool = False,
    *,
    dst_path: str | PathLike[str],
    dst_offset: int,
    dst_dtype: str,
    threads: int = 0,
) -> int: ...
def dtype_bytes(dtype: str, elements: int) -> tuple[int, int]: ...

# ----------------------------------------------------------------------------------------- networks
@final
class CancelToken:
    """Stops a run from another thread."""

    def __init__(self) -> None: ...
    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...

@final
class Device:
    """A compute device with its threads."""

    @staticmethod
    def cpu(threads: int = 0) -> Device: ...
    @property
    def threads(self) -> int: ...

@final
class Network:
    """A network with its parameters on a device."""

    def __init__(
        self, kind: str, config: Mapping[str, Any], store: WeightStore, device: Device
    ) -> None: ...
    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        options: Mapping[str, int] = ...,
        cancel: CancelToken | None = None,
    ) -> dict[str, _Array]: ...
    def release(self) -> None: ...
    @property
    def activation_bytes(self) -> int: ...
    @property
    def graphs_built(self) -> int: ...

def parameters(kind: str, config: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]: ...
def physical_cores() -> int: ...

# ------------------------------------------------------------------------------------------- stages
def decode_latents(
    decoder: Network,
    latents: _Array,
    factor: int,
    tile: int = 0,
    overlap: int = 0,
    cancel: CancelToken | None = None,
) -> _Array: ...
def encode_image(
    encoder: Network,
    image: _Array,
    factor: int,
    tile: int = 0,
    overlap: int = 0,
    cancel: CancelToken | None = None,
) -> _Array: ...

@final
class DenoiseRun:
    """One generation's denoising, step by step."""

    def __init__(
        self,
        denoiser: Network,
        *,
        sampler: str,
        x: _Array,
        schedule: Schedule,
        levels: NoiseLevels,
        prediction: str,
        seeds: Sequence[int],
        noise_state: bytes = b"",
        positive: Mapping[str, NDArray[Any]],
        negative: Mapping[str, NDArray[Any]],
        extra_channels: _Array | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        eta: float | None = None,
    ) -> None: ...
    def step(self, cancel: CancelToken | None = None) -> None: ...
    @property
    def latents(self) -> _Array: ...
    @property
    def denoised(self) -> _Array: ...
    @property
    def sigma(self) -> float: ...
    @property
    def index(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def done(self) -> bool: ...
    @property
    def evaluations(self) -> int: ...
    def save(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...

# ----------------------------------------------------------------------------------------- sampling
def normal(shape: Sequence[int], seed: int, kind: str = "torch-cpu") -> _Array: ...
def sampler_names() -> list[str]: ...
def schedule_names() -> list[str]: ...

@final
class NormalSource:
    """Noise with one generator per picture."""

    def __init__(self, seeds: Sequence[int], kind: str = "torch-cpu") -> None: ...
    def normal(self, shape: Sequence[int]) -> _Array: ...
    def save(self) -> bytes: ...

@final
class NoiseLevels:
    """The sigmas of a model's training timesteps."""

    def __init__(
        self,
        kind: str,
        beta_start: float,
        beta_end: float,
        count: int,
        zero_terminal_snr: bool = False,
    ) -> None: ...
    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    def sigma(self, timestep: float) -> float: ...
    def timestep(self, sigma: float) -> float: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> float: ...
    def __iter__(self) -> Iterator[float]: ...

@final
class Schedule:
    """The noise levels of a run, with the timesteps that the network is told."""

    def __init__(
        self,
        name: str,
        steps: int,
        levels: NoiseLevels,
        rho: float | None = None,
        steps_offset: int = 0,
    ) -> None: ...
    @property
    def sigmas(self) -> _Array: ...
    @property
    def timesteps(self) -> _Array: ...
    @property
    def initial_scale(self) -> float: ...

@final
class Sampler:
    """A sampler over a Python callable (x, sigma) -> denoised."""

    def __init__(
        self,
        name: str,
        x: _Array,
        sigmas: _Array,
        seeds: Sequence[int],
        eta: float | None = None,
        s_noise: float = 1.0,
        noise: str = "torch-cpu",
        levels: NoiseLevels | None = None,
    ) -> None: ...
    def step(self, denoiser: Callable[[_Array, float], _Array]) -> None: ...
    @property
    def x(self) -> _Array: ...
    @property
    def denoised(self) -> _Array: ...
    @property
    def sigma(self) -> float: ...
    @property
    def index(self) -> int: ...
    @property
    def done(self) -> bool: ...
    def save(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...
