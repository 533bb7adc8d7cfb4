"""What all training stages share: the loop, worker processes, a schedule by wall clock, averages.

On a CPU two single-threaded processes that average their gradients are faster than one process
with two threads (the layers are too small to split well), hence :class:`Team`. The schedule runs
by elapsed time, not by steps: "be finished in an hour" is what one wants to say on a machine
whose speed one does not know.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True)
class Settings:
    """Options of one training stage, the same in every worker process."""

    folder: Path
    """Where checkpoints, caches and logs go."""
    minutes: float
    """Time budget of the stage; the learning rate reaches zero at its end."""
    workers: int = 2
    """Processes that average their gradients; one per CPU core, or one in all on a GPU."""
    device: str = "cpu"
    seed: int = 0


class Team:
    """The worker processes of a stage, or a single process when ``size`` is 1."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter], value: float) -> float:
        """Average all gradients over the team in place, and ``value`` along with them.

        The value is the elapsed time: each worker must see the same, or their learning rates and
        then their weights would drift apart.
        """
        if self.size == 1:
            return value
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([value])])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for gradient in gradients:
            count = gradient.numel()
            gradient.copy_(flat[start : start + count].view_as(gradient))
            start += count
        return float(flat[-1])


def launch(stage: Callable[[Settings, Team], None], settings: Settings) -> None:
    """Run a stage in ``settings.workers`` processes and wait for them."""
    if settings.workers == 1:
        stage(settings, Team(0, 1))
        return
    meeting = settings.folder / f"meeting-{os.getpid()}"
    meeting.unlink(missing_ok=True)
    spawn(_work, args=(stage, settings, meeting), nprocs=settings.workers)  # type: ignore[no-untyped-call]
    meeting.unlink(missing_ok=True)


def _work(
    rank: int, stage: Callable[[Settings, Team], None], settings: Settings, meeting: Path
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting.absolute()}", rank=rank, world_size=settings.workers
    )
    stage(settings, Team(rank, settings.workers))
    dist.destroy_process_group()


class Clock:
    """Time spent on a stage, across interruptions, as a part of its budget."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.budget = minutes * 60
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self._start


def learning_rate(peak: float, progress: float, step: int, warmup: int = 100) -> float:
    """Return a rate that rises linearly for ``warmup`` steps, then falls to zero as a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / warmup) * cosine


class Average:
    """Exponential moving average of a model's floating-point weights (EMA).

    The decay grows with the number of steps, (1 + n) / (10 + n) up to ``decay``, so that the
    random start is forgotten at once.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model's present weights."""
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[key].lerp_(value, rate)


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a reader sees the old file or the new one, never a half."""
    draft = path.with_suffix(".draft")
    torch.save(content, draft)
    draft.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or return None if there is none."""
    if not path.exists():
        return None
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def log(folder: Path, stage: str, **values: float) -> None:
    """Print a line of figures and append it to the stage's log file."""
    figures = " ".join(f"{name} {value:.5g}" for name, value in values.items())
    line = f"{time.strftime('%H:%M:%S')} {stage} {figures}"
    print(line, flush=True)
    with (folder / f"{stage}.log").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def to_tensor(pixels: Any) -> Tensor:
    """Turn uint8 pictures [N, H, W, 3] into floats [N, 3, H, W] in -1..1."""
    tensor = torch.as_tensor(pixels).permute(0, 3, 1, 2).float()
    return tensor / 127.5 - 1


# --- the loop ---------------------------------------------------------------------------------

Weights: TypeAlias = "dict[str, Tensor]"
"""A model's state, by name."""
Loss: TypeAlias = "Callable[[float], tuple[Tensor, dict[str, float]]]"
"""From the progress, 0 to 1, to the loss of a fresh batch, and figures for the log."""

_EXPORT_SECONDS = 150.0


@dataclass(frozen=True)
class Plan:
    """What differs between two runs of :func:`fit`."""

    name: str
    """Of the checkpoint (``NAME.pt``) and of the log."""
    model: nn.Module
    """What is trained; parameters that need no gradient stay as they are."""
    begin: Callable[[int], Loss]
    """Makes the loss of one process from the seed of its draws."""
    finish: Callable[[Weights], Mapping[str, float]]
    """Writes the result with averaged weights and returns figures for the log."""
    peak_rate: float
    decay: float = 0.999
    """Of the average (EMA), per step."""
    weight_decay: float = 0.01


def fit(settings: Settings, team: Team, plan: Plan) -> None:
    """Train until the time budget is used up; resumes from the plan's checkpoint.

    The leading process writes checkpoint and result every few minutes and at the end.
    """
    path = settings.folder / f"{plan.name}.pt"
    model = plan.model.to(settings.device)
    state = load(path)
    if state is not None:
        model.load_state_dict(state["model"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
    )
    average = Average(model, plan.decay)
    step, spent = 0, 0.0
    if state is not None:
        optimiser.load_state_dict(state["optimiser"])
        average.weights = {k: v.to(settings.device) for k, v in state["average"].items()}
        step, spent = state["step"], state["spent"]
    seed = settings.seed + 1000 * team.rank + step
    torch.manual_seed(seed)
    loss_of = plan.begin(seed)
    clock = Clock(settings.minutes, spent)
    progress, exported = spent / clock.budget, spent
    seen: defaultdict[str, list[float]] = defaultdict(list)
    while progress < 1:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan.peak_rate, progress, step)
        optimiser.zero_grad(set_to_none=True)
        loss, figures = loss_of(progress)
        loss.backward()  # type: ignore[no-untyped-call]
        spent = team.average_gradients(parameters, clock.spent)
        progress = spent / clock.budget
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        average.update(model, step)
        for name, value in {"loss": loss.item(), **figures}.items():
            seen[name].append(value)
        if team.leads and step % 50 == 0:
            means = {name: float(np.mean(values)) for name, values in seen.items()}
            log(settings.folder, plan.name, step=step, spent=spent, **means)
            seen.clear()
        if team.leads and (spent - exported > _EXPORT_SECONDS or progress >= 1):
            exported = spent
            save(
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average.weights,
                    "step": step,
                    "spent": spent,
                },
                path,
            )
            log(settings.folder, plan.name, step=step, **plan.finish(average.weights))


def stratified(count: int, device: torch.device) -> Tensor:
    """Return one uniform number from each of ``count`` equal parts of 0 to 1, in random order.

    As the places of a batch in the noise schedule they make the loss (and the gradient) of a small
    batch less noisy than independent draws do.
    """
    return (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
