"""Text encoders from files of their own: which file is which encoder, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from os import PathLike
from typing import Any, TypeAlias

from sdengine.errors import ParameterError, SDEngineError, WeightsError
from sdengine.families import CONTEXT, Config, Family, TextUse
from sdengine.formats import TensorIndex, open_index
from sdengine.loading.detection import choices, config_of, detect
from sdengine.loading.locate import Located, locate
from sdengine.tokenizers import ClipTokenizer

AnyPath: TypeAlias = "str | PathLike[str]"
TextEncoders: TypeAlias = "AnyPath | Sequence[AnyPath] | Mapping[str, AnyPath]"
Tokenizers: TypeAlias = "AnyPath | ClipTokenizer | Mapping[str, AnyPath | ClipTokenizer]"

_ARGUMENT = "text_encoders"


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
        named = [_named(family, name, path) for name, path in given.items()]
        found = {located.component.name: located for located in named}
        return {**_companions(family, [located.index for located in named]), **found}
    if not isinstance(given, str | PathLike | list | tuple):
        raise ParameterError(f"text_encoders must be paths, or paths by name, not {given!r:.80}")
    paths = [given] if isinstance(given, str | PathLike) else list(given)
    indices = [open_index(path) for path in paths]
    found = _companions(family, indices)
    bare: list[TensorIndex] = []
    for index in indices:
        held = {
            name: part
            for name in family.tokenizers
            if (part := locate(index, family.component(name))) and part.prefix
        }
        fresh = {name: part for name, part in held.items() if name not in found}
        found.update(fresh)
        if not held and not _only_companions(family, index, found):
            bare.append(index)
    places = [name for name in family.tokenizers if name not in found]
    count = len([c for c in family.components if c.argument == _ARGUMENT])
    if len(bare) > len(places) or len(paths) > count:
        raise ParameterError(f"{len(paths)} text encoders given; {family.title} has {count}")
    ways = list(permutations(places, len(bare)))
    orders = [order for way in ways if (order := _placed(family, bare, way)) is not None]
    for order in orders:
        if _widths_fit(family, order, denoiser):
            return {**found, **order}
    first = (
        orders[0]
        if orders
        else {n: _in_file(family, n, i) for n, i in zip(ways[0], bare, strict=True)}
    )
    return {**found, **first}


def _companions(family: Family, indices: Sequence[TensorIndex]) -> dict[str, Located]:
    """Parts of text encoders that are components of their own and read no text: vision encoders."""
    found = {
        component.name: locate(index, component)
        for component in family.components
        if component.argument == _ARGUMENT and component.name not in family.tokenizers
        for index in indices
        if locate(index, component) is not None
    }
    return {name: part for name, part in found.items() if part is not None}


def _only_companions(family: Family, index: TensorIndex, found: Mapping[str, Located]) -> bool:
    """Whether a file holds such a part and no text encoder."""
    held = any(part.index is index for name, part in found.items() if name not in family.tokenizers)
    return held and not any(locate(index, family.component(name)) for name in family.tokenizers)


def given_tokenizer(family: Family, given: Any, component: str) -> Any:
    """What the caller gives as the tokenizer of a text encoder, or None.

    By name (`spoken_names`) it is that one's. Otherwise it is the tokenizer of the only text encoder, or of all that
    read with CLIP's.

    Raises:
        ParameterError: the family has no text encoder of a name.
    """
    if isinstance(given, Mapping):
        called = spoken_names(family)
        for name in given:
            if name not in called:
                known = ", ".join(called)
                raise ParameterError(f"{family.title} has no {name!r}; it has {known}")
        return next((value for name, value in given.items() if called[name] == component), None)
    alone = len(family.tokenizers) == 1
    return given if alone or family.tokenizers[component] == "clip" else None


def _placed(
    family: Family, files: Sequence[TensorIndex], places: Sequence[str]
) -> dict[str, Located] | None:
    """Each file in its place; None if one holds no such encoder."""
    found = {}
    for name, index in zip(places, files, strict=True):
        located = locate(index, family.component(name))
        if located is None:
            return None
        found[name] = located
    return found


def _named(family: Family, name: str, path: AnyPath) -> Located:
    called = spoken_names(family)
    if name not in called:
        known = ", ".join(called)
        raise ParameterError(f"{family.title} has no {name!r}; it has {known}")
    return _in_file(family, called[name], open_index(path))


def spoken_names(family: Family) -> dict[str, str]:
    """What users call the text encoders, and the component of each: its own name, and ComfyUI's (``clip_l``)."""
    found = {c.name: c.name for c in family.components if c.argument == _ARGUMENT}
    for name in family.tokenizers:
        for prefix in family.component(name).prefixes:
            group, _, rest = prefix.partition(".")
            if group == "text_encoders":
                found[rest.partition(".")[0]] = name
    return found


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
    """Raise WeightsError unless the encoders are the family's and make what the denoiser reads."""
    encoders = {u.component: configs[u.component] for u in family.text if u.component in configs}
    _check_kin(family, encoders, paths)
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
    _check_eyes(family, configs, paths)


def _check_kin(family: Family, encoders: Mapping[str, Config], paths: Mapping[str, Any]) -> None:
    """Raise WeightsError for encoders that are another network of the kind."""
    for name, config in encoders.items():
        component = family.component(name)
        for key, allowed in component.told_by.items():
            if config.get(key) not in allowed:
                raise WeightsError(
                    f"{paths[name]}: this is not {component.title}: {key} = {config.get(key)!r}"
                    f" (expected {choices(allowed)}). Give the text encoder that {family.title} was"
                    " trained with"
                )


def _check_eyes(family: Family, configs: Mapping[str, Config], paths: Mapping[str, Any]) -> None:
    """Raise WeightsError unless vision encoders make tokens as wide as those of words."""
    for use in family.text:
        name = use.sight.component if use.sight else ""
        if name not in configs or use.component not in configs:
            continue
        found, expected = configs[name]["out_width"], _width(configs[use.component])
        if found != expected:
            raise WeightsError(
                f"{paths[name]}: the {name} makes tokens of {found} columns, the {use.component}"
                f" ({paths[use.component]}) reads {expected}: they are two models'. Give both with"
                " text_encoders=[...]"
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
        own = int(denoiser.get(f"{use.feeds}_width", 0))
        if use.feeds != CONTEXT and use.component in encoders:
            found = _width(encoders[use.component])
            if found != own:
                yield f"text for {use.feeds}", found, own
        elif use.feeds == CONTEXT and use.context:
            segments.setdefault(use.segment, []).append(use)
    for uses in segments.values() if context else ():
        known = [_width(encoders[u.component]) for u in uses if u.component in encoders]
        whole = len(known) == len(uses) and len(segments) == 1
        if sum(known) > context or (whole and sum(known) != context):
            yield "context", sum(known), context
    uses = [use for use in family.text if use.context]
    if context and len(segments) > 1 and all(use.component in encoders for use in uses):
        # Narrower segments are filled up to the widest, which is what the denoiser reads.
        widest = max(
            sum(_width(encoders[use.component]) for use in group) for group in segments.values()
        )
        if widest != context:
            yield "context", widest, context
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
    if sizes is None or not sizes.with_pooled:
        return denoiser.get("pooled_width")
    numbers = len(sizes.names) * int(denoiser["addition_time_embed_dim"])
    return int(denoiser["class_embed_dim"]) - numbers
