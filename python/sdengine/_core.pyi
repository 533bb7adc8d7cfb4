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
        padding: int = 0,
        scale: float = 1.0,
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
    adapters: Sequence[tuple[Adapter, float]] = ...,
    parameter: str = "",
    padding: int = 0,
    scale: float = 1.0,
) -> int: ...
def read_values(
    dtype: str,
    shape: Sequence[int],
    path: str | PathLike[str],
    offset: int,
    nbytes: int,
    strides: Sequence[int] | None = None,
) -> list[float]: ...
def dtype_bytes(dtype: str, elements: int) -> tuple[int, int]: ...

# ----------------------------------------------------------------------------------------- backends
def add_backend_root(folder: str) -> None: ...
def list_devices() -> list[dict[str, Any]]: ...
def find_device(name: str) -> dict[str, Any]: ...
def backend_failures() -> list[tuple[str, str, str, str]]: ...

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
    def cpu(threads: int = 0, portable: bool = False) -> Device: ...
    @staticmethod
    def open(name: str, threads: int = 0) -> Device: ...
    @property
    def name(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def has_own_memory(self) -> bool: ...
    def memory(self) -> tuple[int, int]: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def staging_bytes(self) -> int: ...
    def reset_peak(self) -> None: ...
    @property
    def arithmetic(self) -> str: ...
    def set_arithmetic(self, arithmetic: str) -> None: ...

@final
class Adapter:
    """What one file changes in one network."""

    def __init__(self) -> None: ...
    def add(
        self,
        parameter: str,
        shape: Sequence[int],
        kind: str,
        tensors: Mapping[
            str,
            tuple[str, Sequence[int], str | PathLike[str], int, int, Sequence[int] | None],
        ],
        factor: float = 1.0,
    ) -> None: ...
    @property
    def parameters(self) -> list[str]: ...

@final
class Profile:
    """Times of operators, in the order in which they ran."""

    def __init__(self) -> None: ...
    def take(self) -> list[tuple[str, str, float, float, int, int]]: ...

@final
class Network:
    """A network with its parameters on a device."""

    def __init__(
        self,
        kind: str,
        config: Mapping[str, Any],
        store: WeightStore,
        device: Device | Sequence[Device],
        shares: Sequence[float] = ...,
    ) -> None: ...
    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        options: Mapping[str, int] = ...,
        cancel: CancelToken | None = None,
        steady: Sequence[str] = ...,
    ) -> dict[str, _Array]: ...
    def rehearsal(self) -> Network: ...
    @property
    def rehearsed(self) -> list[tuple[dict[str, list[int]], dict[str, int], list[str], int]]: ...
    def set_adapters(self, adapters: Sequence[tuple[Adapter, float]]) -> None: ...
    @property
    def adapter_bytes(self) -> int: ...
    def set_profile(self, profile: Profile | None) -> None: ...
    def release(self) -> None: ...
    def release_weights(self) -> None: ...
    def release_activations(self) -> None: ...
    def rest(self) -> None: ...
    def set_residency(self, policy: str, slot_bytes: int = 0, keep: int = 0) -> None: ...
    @property
    def residency(self) -> str: ...
    def planned(
        self,
        shapes: Mapping[str, Sequence[int]],
        options: Mapping[str, int] = ...,
        policy: str = "resident",
        slot_bytes: int = 0,
        steady: Sequence[str] = ...,
        keep: int = 0,
    ) -> dict[str, int]: ...
    def planned_by_device(
        self,
        shapes: Mapping[str, Sequence[int]],
        options: Mapping[str, int] = ...,
        policy: str = "resident",
        slot_bytes: int = 0,
        steady: Sequence[str] = ...,
        keep: int = 0,
    ) -> list[dict[str, int]]: ...
    def planned_together(
        self,
        evaluations: Sequence[tuple[Mapping[str, Sequence[int]], Mapping[str, int], Sequence[str]]],
        policy: str = "resident",
        slot_bytes: int = 0,
        keep: int = 0,
    ) -> tuple[list[dict[str, int]], int]: ...
    def planned_bytes(
        self,
        shapes: Mapping[str, Sequence[int]],
        options: Mapping[str, int] = ...,
        steady: Sequence[str] = ...,
    ) -> int: ...
    @property
    def activation_bytes(self) -> int: ...
    @property
    def guidance_layers(self) -> list[str]: ...
    @property
    def reuse(self) -> str: ...
    @property
    def graphs_built(self) -> int: ...
    @property
    def owned_bytes(self) -> int: ...

def parameters(kind: str, config: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]: ...
def fail_allocation(n: int) -> None: ...
def allocations_until_failure() -> int: ...
def fail_in_graph(by_abort: bool, message: str) -> None: ...
def product_scratch(device: str, dtype: str, shape: tuple[int, int], rows: int) -> int: ...
def physical_cores() -> int: ...

# ------------------------------------------------------------------------------------------- stages
def decode_latents(
    decoder: Network,
    latents: _Array,
    factor: int,
    tile: int = 0,
    overlap: int = 0,
    circular: int = 0,
    cancel: CancelToken | None = None,
) -> _Array: ...
def upscale_image(
    upscaler: Network,
    image: _Array,
    factor: int,
    grid: int = 1,
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
    circular: int = 0,
    cancel: CancelToken | None = None,
) -> _Array: ...

_Interval = tuple[float, float]
_Layers = tuple[Sequence[str], float, _Interval]

@final
class Guidance:
    """How several conditions become one estimate."""

    def __init__(
        self,
        *,
        scales: Sequence[float] = ...,
        interval: _Interval = (0.0, 1.0),
        rescale: float = 0.0,
        image_scale: float = 1.0,
        projection: tuple[float, float, float] | None = None,
        threshold: tuple[float, float] | None = None,
        mimic: tuple[float, float] | None = None,
        skip: _Layers | None = None,
        perturb: _Layers | None = None,
        nag: tuple[float, float, float] | None = None,
        zero_steps: int | None = None,
        token_side: int = 0,
        row_norms: bool = False,
    ) -> None: ...

@final
class Branch:
    """One condition: its inputs, with one entry per picture."""

    def __init__(
        self,
        role: str,
        inputs: Mapping[str, NDArray[Any]],
        weight: float = 1.0,
        extra_channels: _Array | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None: ...

@final
class Control:
    """Residuals for the denoiser, with one entry per picture."""

    def __init__(
        self,
        network: Network | None,
        inputs: Mapping[str, NDArray[Any]],
        weights: Sequence[float],
        *,
        factors: Mapping[str, float] = ...,
        positive_only: bool = False,
        pooled: bool = False,
        shared: Sequence[str] | None = None,
    ) -> None: ...

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
        prediction: Prediction | str,
        seeds: Sequence[int],
        noise_state: bytes = b"",
        noise: str = "torch-cpu",
        phases: Sequence[tuple[int, Sequence[Branch]]],
        guidance: Guidance = ...,
        eta: float | None = None,
        s_noise: float = 1.0,
        brownian: bool | None = None,
        order: int | None = None,
        churn: Sequence[float] = ...,
        blend: tuple[_Array, _Array, _Array, bool] | None = None,
        options: Mapping[str, int] = ...,
        together: int = 0,
        controls: Sequence[Control] = ...,
        tiles: tuple[int, int, str] | None = None,
        cache: tuple[int, float, Sequence[int]] | None = None,
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
    @property
    def reused(self) -> int: ...
    def save(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...
    def fork(self) -> DenoiseRun: ...
    def set_latents(self, latents: _Array) -> None: ...

# ----------------------------------------------------------------------------------------- sampling
def normal(shape: Sequence[int], seed: int, kind: str = "torch-cpu") -> _Array: ...
def reads_unguided(sampler: str) -> bool: ...
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
    """The noise levels that a model was trained at."""

    def __init__(
        self,
        kind: str,
        beta_start: float,
        beta_end: float,
        count: int,
        zero_terminal_snr: bool = False,
        nearest: bool = False,
    ) -> None: ...
    @staticmethod
    def flow(shift: float = 1.0, count: int = 1000, multiplier: float = 1000.0) -> NoiseLevels: ...
    @staticmethod
    def edm(
        sigma_min: float = 0.002, sigma_max: float = 80.0, count: int = 1000
    ) -> NoiseLevels: ...
    @property
    def kind(self) -> str: ...
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
class Prediction:
    """What a denoiser's output means."""

    def __init__(
        self, kind: str, sigma_data: float | None = None, boundary: NoiseLevels | None = None
    ) -> None: ...
    def input_scale(self, sigma: float) -> float: ...
    def latents_scale(self, sigma: float) -> float: ...
    def denoise(self, x: _Array, output: _Array, sigma: float) -> _Array: ...

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
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        spacing: str = "",
        coefficient: float | None = None,
        terminal: float | None = None,
        multistep: bool = False,
    ) -> None: ...
    @staticmethod
    def from_sigmas(sigmas: Sequence[float] | _Array, levels: NoiseLevels) -> Schedule: ...
    @staticmethod
    def from_timesteps(timesteps: Sequence[float] | _Array, levels: NoiseLevels) -> Schedule: ...
    def part(self, first: int, last: int) -> Schedule: ...
    @property
    def steps(self) -> int: ...
    @property
    def sigmas(self) -> _Array: ...
    @property
    def timesteps(self) -> _Array: ...
    @property
    def initial_scale(self) -> float: ...

def seed_sequence_word(entropy: int, spawn_key: Sequence[int]) -> int: ...

@final
class BrownianTree:
    """A Brownian path that is a function of its seed."""

    def __init__(
        self, seed: int, start: float, end: float, size: int, kind: str = "torch-cpu"
    ) -> None: ...
    def increment(self, start: float, end: float) -> _Array: ...

@final
class BrownianNoise:
    """Unit noise from one Brownian path per picture."""

    def __init__(
        self,
        seeds: Sequence[int],
        sigma_min: float,
        sigma_max: float,
        size: int,
        kind: str = "torch-cpu",
    ) -> None: ...
    def normal(self, sigma: float, next: float, shape: Sequence[int]) -> _Array:
        """Float32 noise [N, ...] for the step sigma -> next."""

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
        flow: bool = False,
        brownian: bool | None = None,
        order: int | None = None,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = ...,
    ) -> None: ...
    def step(self, denoiser: Callable[[_Array, float], _Array | tuple[_Array, _Array]]) -> None: ...
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
