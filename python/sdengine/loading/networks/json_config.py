"""A network's config.json: taken for what tensors cannot tell, checked for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import UnsupportedModelError, WeightsError

Json = Mapping[str, Any]


def check_facts(json: Json, facts: Mapping[str, Any]) -> None:
    """Compare what the config says with what the tensors show.

    `facts`: key -> value from the tensors. Keys that the config lacks, or has as null, are passed
    over. Raises WeightsError for a difference.
    """
    for key, found in facts.items():
        said = json.get(key)
        if said is not None and not _agree(said, found):
            raise WeightsError(
                f"config.json says {key} = {said!r}, the tensors show {found!r}."
                " The config is another model's, or a file was replaced: restore the original pair"
            )


def _agree(said: Any, found: Any) -> bool:
    """Equal, or one number that stands for a list of equal ones."""
    if isinstance(said, list) == isinstance(found, list):
        return bool(said == found)
    values, value = (said, found) if isinstance(said, list) else (found, said)
    return all(item == value for item in values)


def check_options(json: Json, options: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises UnsupportedModelError for a key with a value outside of those listed."""
    for key, allowed in options.items():
        if key in json and json[key] not in allowed:
            choices = ", ".join(repr(value) for value in allowed)
            raise UnsupportedModelError(
                f"config.json has {key} = {json[key]!r}; supported is {choices}."
                " This network computes something else than sdengine does"
            )


def integer(json: Json, key: str, otherwise: int) -> int:
    """The whole number under `key`; `otherwise` if it is absent or null."""
    value = json.get(key)
    if value is None:
        return otherwise
    if type(value) is not int or value < 0:
        raise WeightsError(f"config.json has {key} = {value!r}; expected a whole number")
    return value


def number(json: Json, key: str, otherwise: float) -> float:
    """The number under `key`; `otherwise` if it is absent or null."""
    value = json.get(key)
    if value is None:
        return otherwise
    if type(value) not in (int, float):
        raise WeightsError(f"config.json has {key} = {value!r}; expected a number")
    return float(value)


def numbers(json: Json, key: str, otherwise: list[float]) -> list[float]:
    """The list of numbers under `key`; `otherwise` if it is absent or null."""
    value = json.get(key)
    if value is None:
        return otherwise
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
        raise WeightsError(f"config.json has {key} = {value!r}; expected a list of numbers")
    return [float(item) for item in value]


def flag(json: Json, key: str, otherwise: bool) -> bool:
    """True or false under `key`; `otherwise` if it is absent or null."""
    value = json.get(key)
    if value is None:
        return otherwise
    if type(value) is not bool:
        raise WeightsError(f"config.json has {key} = {value!r}; expected true or false")
    return value
