"""Text encoders from files of their own: which file is which encoder, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from os import PathLike
from typing import Any, TypeAlias

from sdengine.errors import ParameterError, SDEngineError, WeightsError
from sdengine.families import Config, Family
from sdengine.formats import TensorIndex, open_index
from sdengine.loading.detection import config_of, detect
from sdengine.loading.locate import Located, locate

AnyPath: TypeAlias = "str | PathLike[str]"
TextEncoders: TypeAlias = "AnyPath | Sequence[AnyPath] | Mapping[str, AnyPath]"


def find_text_encoders(
    family: Family, given: TextEncoders | None, denoiser: Config
) -> dict[str, Located]:
    """The text encoders that the caller gives as files, by component.

    A file that says which encoders it holds (by its prefixes: a whole model) replaces those. A file
    of one encoder takes the place that is named for it, or the one where its width belongs.

    Args:
        family: whose encoders these are.
        given: one path, several, or a mapping from component names.
        denoiser: hyper-parameters of the denoiser that reads them.

    Raises:
        ParameterError: a file holds no encoder of the family, or there are too many.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {name: _named(family, name, path) for name, path in given.items()}
    paths = [given] if isinstance(given, str | PathLike) else list(given)
    found: dict[str, Located] = {}
    bare: list[TensorIndex] = []
    for path in paths:
        index = open_index(path)
        held = {
            name: part
            for name in family.tokenizers
            if (part := locate(index, family.component(name))) and part.prefix
        }
        fresh = {name: part for name, part in held.items() if name not in found}
        found.update(fresh)
        if not held:
            bare.append(index)
    places = [name for name in family.tokenizers if name not in found]
    if len(bare) > len(places) or len(paths) > len(family.tokenizers):
        count = len(family.tokenizers)
        raise ParameterError(f"{len(paths)} text encoders given; {family.title} has {count}")
    orders = [_placed(family, bare, order) for order in permutations(places, len(bare))]
    return next(
        ({**found, **order} for order in orders if _widths_fit(family, order, denoiser)),
        {**found, **orders[0]},
    )


def _placed(
    family: Family, files: Sequence[TensorIndex], places: Sequence[str]
) -> dict[str, Located]:
    return {name: _in_file(family, name, index) for name, index in zip(places, files, strict=True)}


def _named(family: Family, name: str, path: AnyPath) -> Located:
    if name not in family.tokenizers:
        known = ", ".join(family.tokenizers)
        raise ParameterError(f"{family.title} has no {name!r}; it has {known}")
    return _in_file(family, name, open_index(path))


def _in_file(family: Family, name: str, index: TensorIndex) -> Located:
    located = locate(index, family.component(name))
    if located is None:
        reason = detect(index).reason or "it is a model without one"
        raise ParameterError(f"{index.path} holds no {name} of {family.title}: {reason}")
    return located


def _widths_fit(family: Family, parts: Mapping[str, Located], denoiser: Config) -> bool:
    """Whether these encoders, each for itself, can be what the denoiser reads."""
    try:
        configs = {name: config_of(part, family) for name, part in parts.items()}
    except SDEngineError:
        return False
    context = _context_width(denoiser)
    widths = {name: _width(config) for name, config in configs.items()}
    if len(widths) == len(family.text) and sum(widths.values()) != context:
        return False
    pooled = _pooled_width(family, denoiser)
    return all(
        widths[use.component] <= context
        and (not use.pooled or pooled is None or _pooled_by(configs[use.component]) == pooled)
        and (use.pooled or len(widths) == len(family.text) or widths[use.component] != pooled)
        for use in family.text
        if use.component in configs
    )


def check_text_encoders(
    family: Family, configs: Mapping[str, Config], paths: Mapping[str, Any]
) -> None:
    """Raise WeightsError unless the encoders make what the denoiser reads."""
    denoiser = configs[family.denoiser]
    encoders = {use.component: configs[use.component] for use in family.text}
    if not _context_width(denoiser) or any("hidden_size" not in c for c in encoders.values()):
        return
    total, expected = sum(map(_width, encoders.values())), _context_width(denoiser)
    if total != expected:
        parts = " and ".join(
            f"{name} ({paths[name]}) {_width(config)}" for name, config in encoders.items()
        )
        wanted = " and ".join(family.component(name).title for name in encoders)
        raise WeightsError(
            f"the text encoders make a context of {total} columns: {parts}. The denoiser reads"
            f" {expected}: {family.title} takes {wanted}. A text encoder is another model's: give"
            " the right one with text_encoders="
        )
    pooled = _pooled_width(family, denoiser)
    for use in family.text:
        found = _pooled_by(encoders[use.component])
        if use.pooled and pooled is not None and found != pooled:
            raise WeightsError(
                f"{use.component} ({paths[use.component]}) makes a pooled text of {found} values,"
                f" the denoiser reads {pooled}. It is not {family.component(use.component).title}:"
                " give the right one with text_encoders="
            )


def _width(config: Config) -> int:
    return int(config.get("hidden_size", 0))


def _pooled_by(config: Config) -> int:
    return int(config.get("projection_dim") or _width(config))


def _context_width(denoiser: Config) -> int:
    return int(denoiser.get("encoder_hid_dim") or denoiser.get("cross_attention_dim", 0))


def _pooled_width(family: Family, denoiser: Config) -> int | None:
    """Columns of the pooled text that the denoiser reads; None if it reads none."""
    sizes = family.size_conditioning
    if sizes is None:
        return None
    numbers = len(sizes.names) * int(denoiser["addition_time_embed_dim"])
    return int(denoiser["class_embed_dim"]) - numbers
