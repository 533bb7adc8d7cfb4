"""Generation parameters as text, in the convention of A1111, and out of picture files.

::

    a red circle
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512

A value with a comma, a colon or a line break stands in JSON quotes. Prompts for which this layout
is ambiguous (one with a line that begins "Negative prompt:", say) are written a second time, as
quoted fields of the last line, which :func:`parse_parameters` prefers: what was written is always
read back.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Final

from PIL import ExifTags, Image

from sdengine.errors import FormatError, ParameterError
from sdengine.metadata_fields import BY_LABEL, FIELDS, format_record, number, numbers_text

PROMPT: Final = "prompt"
NEGATIVE: Final = "negative_prompt"

_NEGATIVE_LABEL = "Negative prompt:"
_EXACT_PROMPT, _EXACT_NEGATIVE = "sdengine prompt", "sdengine negative prompt"
_LABEL: Final = re.compile(r"\s*(\w[\w \-/]+):\s*")
_QUOTED: Final = re.compile(r'"(?:\\.|[^\\"])*"(?=\s*(?:,|$))')
_SIZE: Final = re.compile(r"(\d{1,6})x(\d{1,6})")
_SIZES: Final = {"Size": "", "Hires resize": "hires_"}
_HIRES: Final = {"hires_scale", "hires_width", "hires_height"}
_MINFIELDS = 3  # A1111 takes a last line with fewer for a line of the prompt


# ------------------------------ writing
def format_parameters(parameters: Mapping[str, object]) -> str:
    """Generation parameters as A1111's text.

    Args:
        parameters: ``prompt``, ``negative_prompt``, ``width`` and ``height``, and the options of a
            generation by their names; ``model``, ``model_hash``, ``vae``, ``arithmetic``, ``refiner``, ``task``,
            ``version``; the fields of :class:`sdengine.Guidance`. Any other key is written as it is
            named, its value as text. None is left out. Samplers and schedules are written under
            A1111's names. ``version`` defaults to this package's.

    Raises:
        ParameterError: a key cannot be written: it must be two or more letters, digits, spaces, or
            ``_ - /``.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    prompt, negative = str(given.pop(PROMPT, "")), str(given.pop(NEGATIVE, ""))
    fields = _fields(given)
    text = _layout(prompt, negative, fields)
    read = parse_parameters(text)
    if (read[PROMPT], read[NEGATIVE]) != (prompt, negative):
        exact = [(_EXACT_PROMPT, _json(prompt)), (_EXACT_NEGATIVE, _json(negative))]
        text = _layout(prompt, negative, [*fields, *exact])
    return text


def _fields(given: dict[str, object]) -> list[tuple[str, str]]:
    """Labels and quoted values of the last line, in A1111's order."""
    version = given.pop("version", None) or _version()
    if "width" in given and "height" in given:
        given["size"] = f"{number(given.pop('width'))}x{number(given.pop('height'))}"
    if "hires_width" in given and "hires_height" in given:
        wide, high = given.pop("hires_width"), given.pop("hires_height")
        given["hires_size"] = f"{number(wide)}x{number(high)}"
    enlarged = given.keys() & {"hires_scale", "hires_size"} and "task" not in given
    if enlarged and "strength" not in given and "hires_strength" in given:
        given["strength"] = given.pop("hires_strength")  # A1111 has one field for both
    known = [(f.label, _quoted(f.to_text(given.pop(f.name)))) for f in FIELDS if f.name in given]
    for key in given:
        if not _LABEL.fullmatch(f"{key}:") or key != key.strip():
            raise ParameterError(
                f"the parameter {key!r} cannot be written; a name has two or more letters, digits, "
                "spaces, or any of _ - /"
            )
    others = [(key, _quoted(_text(value))) for key, value in given.items()]
    return [*known, *others, ("Version", _quoted(str(version)))]


def _text(value: object) -> str:
    """A value of a field that is not known here."""
    if isinstance(value, Mapping) or (is_dataclass(value) and not isinstance(value, type)):
        return format_record(value)
    return numbers_text(value) if isinstance(value, list | tuple) else str(value)


def _layout(prompt: str, negative: str, fields: list[tuple[str, str]]) -> str:
    lines = [prompt] if prompt else []
    if negative:
        lines.append(f"{_NEGATIVE_LABEL} {negative}")
    lines.append(", ".join(f"{label}: {value}" for label, value in fields))
    return "\n".join(lines)


def _quoted(text: str) -> str:
    ambiguous = not text or text != text.strip() or text.startswith('"') or set(text) & set(",:\n")
    return _json(text) if ambiguous else text


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _version() -> str:
    try:
        return f"sdengine {importlib.metadata.version('sdengine')}"
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "sdengine"


# ------------------------------ reading
def parse_parameters(text: str) -> dict[str, Any]:
    """Read A1111's text, whoever wrote it. Never raises: what is not understood stays text.

    Returns:
        ``prompt`` and ``negative_prompt`` always; the other names of :func:`format_parameters`
        where they were found, as int, float, bool, str, a tuple of numbers, or a dict (what was a
        dataclass or a mapping); every unknown field as text under its label.
    """
    text = text.replace("\r\n", "\n")
    head, _, last = text.rstrip().rpartition("\n")
    fields = _read_fields(last)
    if len(fields) < _MINFIELDS and not {"Steps", "Version"} & fields.keys():
        head, fields = text, {}
    prompt, negative = _split_prompts(head)
    result: dict[str, Any] = {
        PROMPT: fields.pop(_EXACT_PROMPT, prompt),
        NEGATIVE: fields.pop(_EXACT_NEGATIVE, negative),
    }
    for label, value in fields.items():
        result.update(_typed(label, value))
    if result.keys() & _HIRES and "task" not in result and "strength" in result:
        result.setdefault("hires_strength", result.pop("strength"))
    if result.keys() & {"hires_width", "hires_height"}:
        result.pop("hires_scale", None)  # SD.Next writes both
    return result


def _split_prompts(head: str) -> tuple[str, str]:
    lines = head.split("\n")
    for index, line in enumerate(lines):
        if line.lstrip().startswith(_NEGATIVE_LABEL):
            first = line.lstrip()[len(_NEGATIVE_LABEL) :].removeprefix(" ")
            return "\n".join(lines[:index]), "\n".join([first, *lines[index + 1 :]])
    return head, ""


def _read_fields(line: str) -> dict[str, str]:
    """``Label: value`` pairs between commas; what does not fit is skipped. Linear in the length."""
    fields: dict[str, str] = {}
    position = 0
    while position < len(line):
        label = _LABEL.match(line, position)
        start = label.end() if label else position
        quoted = _QUOTED.match(line, start)
        comma = line.find(",", quoted.end() if quoted else start)
        end = comma if comma >= 0 else len(line)
        if label:
            fields[label[1]] = _unquoted(quoted[0]) if quoted else line[start:end].rstrip()
        position = end + 1
    return fields


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _typed(label: str, value: str) -> dict[str, Any]:
    """The entry, or two for the size, that a field makes."""
    if label == "Version":
        return {"version": value}
    if label in _SIZES and (match := _SIZE.fullmatch(value)):
        kind = _SIZES[label]
        found = {f"{kind}width": int(match[1]), f"{kind}height": int(match[2])}
        return {name: side for name, side in found.items() if side}
    if label == "Sampler":
        return _sampler(value)
    if (label, value) == ("Schedule type", "Automatic"):
        return {}  # the model's own, which is what no entry means here
    field = BY_LABEL.get(label)
    if field is None or label in _SIZES:
        return {label: value}
    try:
        return {field.name: field.from_text(value)}
    except ValueError:
        return {label: value}


def _sampler(label: str) -> dict[str, Any]:
    """Old texts name the schedule behind the sampler: "DPM++ 2M Karras"."""
    to_sampler, to_schedule = BY_LABEL["Sampler"].from_text, BY_LABEL["Schedule type"].from_text
    first, _, last = label.rpartition(" ")
    if last in ("Karras", "Exponential") and to_sampler(first) != first:
        return {"sampler": to_sampler(first), "schedule": to_schedule(last)}
    return {"sampler": to_sampler(label)}


# ------------------------------ files
def read_parameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The generation parameters of a PNG, JPEG or WebP file, see :func:`parse_parameters`.

    Returns an empty dict for a picture that carries none.

    Raises:
        ParameterError: there is no such file.
        FormatError: the file is no picture, or is damaged.
    """
    text = read_parameters_text(path)
    return {} if text is None else parse_parameters(text)


def read_parameters_text(path: str | os.PathLike[str]) -> str | None:
    """The text that :func:`read_parameters` parses; None for a picture that carries none."""
    try:
        with Image.open(path) as image:
            return _embedded_text(image)
    except FileNotFoundError as error:
        raise ParameterError(f"{path}: there is no such file") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise FormatError(f"{path}: not a readable picture ({error})") from error


def _embedded_text(image: Image.Image) -> str | None:
    if image.format == "PNG":
        image.load()  # text chunks may stand behind the pixels
        text = image.info.get("parameters")
        return text if isinstance(text, str) else None
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, str):
        return comment or None
    return _user_comment(comment) if isinstance(comment, bytes) else None


def _user_comment(comment: bytes) -> str | None:
    """Decode EXIF UserComment: eight bytes of charset, then text."""
    charset, body = comment[:8], comment[8:]
    if charset == b"UNICODE\0":
        if len(body) % 2 == 0 and body.startswith((b"\xff\xfe", b"\xfe\xff")):
            return body.decode("utf-16", "replace")
        # The charset leaves the byte order open: Latin letters tell it.
        little = body[1::2].count(0) > body[0::2].count(0)
        return body.decode("utf-16-le" if little else "utf-16-be", "replace") or None
    if charset in (b"ASCII\0\0\0", b"\0" * 8):
        return body.decode("utf-8", "replace").rstrip("\0") or None
    return comment.decode("utf-8", "replace").rstrip("\0") or None
