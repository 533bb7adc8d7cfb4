"""Text encoders from files of their own: which file is which encoder, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from os import PathLike
from typing import Any, TypeAlias

from sdengine.errors import ParameterError, SDEngineError, WeightsError
from sdengine.families import Config, Family, TextUse
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
    return not any(_misfits(family, configs, denoiser))


def check_text_encoders(
    family: Family, configs: Mapping[str, Config], paths: Mapping[str, Any]
) -> None:
    """Raise WeightsError unless the encoders make what the denoiser reads."""
    encoders = {u.component: configs[u.component] for u in family.text if u.component in configs}
    if any("hidden_size" not in config for config in encoders.values()):
        return
    for what, found, expected in _misfits(family, encoders, configs[family.denoiser]):
        parts = " and ".join(
            f"{name} ({paths[name]}) {_width(config)}" for name, config in encoders.items()
        )
        wanted = " and ".join(family.component(use.component).title for use in family.text)
        raise WeightsError(
            f"the text encoders make a {what} of {found} columns: {parts}. The denoiser reads"
            f" {expected}: {family.title} takes {wanted}. A text encoder is another model's: give"
            " the right one with text_encoders="
        )


def _misfits(
    family: Family, encoders: Mapping[str, Config], denoiser: Config
) -> Iterator[tuple[str, int, int]]:
    """(what, columns that these encoders make, columns that the denoiser reads) where they differ.

    Where an encoder is not among them, its part may have any width that is left.
    """
    context, pooled = context_width(denoiser), _pooled_width(family, denoiser)
    segments: dict[int, list[TextUse]] = {}
    for use in family.text:
        if use.context:
            segments.setdefault(use.segment, []).append(use)
    for uses in segments.values() if context else ():
        known = [_width(encoders[u.component]) for u in uses if u.component in encoders]
        whole = len(known) == len(uses) and len(segments) == 1
        if sum(known) > context or (whole and sum(known) != context):
            yield "context", sum(known), context
    if pooled is None:
        return
    pools = [use for use in family.text if use.pooled]
    known = [_pooled_by(encoders[u.component]) for u in pools if u.component in encoders]
    if sum(known) > pooled or (len(known) == len(pools) and sum(known) != pooled):
        yield "pooled text", sum(known), pooled
    others = (u.component for u in family.text if not u.pooled and len(family.text) > 1)
    for name in others:
        if (
            len(encoders) < len(family.text)
            and name in encoders
            and _width(encoders[name]) == pooled
        ):
            yield "context", _width(encoders[name]), context


def _width(config: Config) -> int:
    return int(config.get("hidden_size", 0))


def _pooled_by(config: Config) -> int:
    return int(config.get("projection_dim") or _width(config))


def context_width(denoiser: Config) -> int:
    """Columns of the text that a denoiser reads; 0 if it reads none."""
    names = ("encoder_hid_dim", "context_width", "cross_attention_dim")
    return next((int(denoiser[name]) for name in names if denoiser.get(name)), 0)


def _pooled_width(family: Family, denoiser: Config) -> int | None:
    """Columns of the pooled text that the denoiser reads; None if it reads none."""
    sizes = family.size_conditioning
    if sizes is None:
        return denoiser.get("pooled_width")
    numbers = len(sizes.names) * int(denoiser["addition_time_embed_dim"])
    return int(denoiser["class_embed_dim"]) - numbers
