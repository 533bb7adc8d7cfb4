"""Any model file or folder into one self-contained GGUF."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from sdengine import _core, previews
from sdengine.adapters import LoraLike
from sdengine.adapters.merging import Merge, merge_of
from sdengine.errors import ParameterError, TokenizerError, WeightsError
from sdengine.families import Component, Defaults
from sdengine.families.control import CONTROL
from sdengine.formats import DTYPES
from sdengine.keys import MappedName, NameMap
from sdengine.loading import Binding, ComponentPlan, ModelPlan, plan_model
from sdengine.loading.control import plan_control_alone
from sdengine.loading.new_gguf import NewTensor, write_header
from sdengine.loading.plan import Autoencoders
from sdengine.loading.text_parts import TextEncoders, Tokenizers, given_tokenizer
from sdengine.loading.tokenizer_source import CLIP, LAYOUTS, TokenizerSource
from sdengine.loading.weight_types import (
    WEIGHT_TYPES,
    Choice,
    TypeRule,
    check_type,
    choose_type,
    parse_rules,
)
from sdengine.output import new_file, output_errors
from sdengine.previews import Projection
from sdengine.recipes import TITLES, as_published
from sdengine.tokenizers import (
    ClipTokenizer,
    JsonTokenizer,
    SentencePieceTokenizer,
    load_clip_tokenizer,
    load_text_tokenizer,
    to_gguf_fields,
    to_text_fields,
)

_QUANTIZATION_VERSION = 2  # of ggml's block types, as gguf's `general.quantization_version`
_SMALL = 1 << 18  # values; a thread of its own would take longer to start than to convert these
_HEADER_BYTES = 4 << 20  # more than a header with a CLIP tokenizer takes


@dataclass(frozen=True)
class ConvertEvent:
    """One tensor was written, or one of the parameters that the new file joins in a tensor."""

    name: str
    """In the new file."""
    index: int
    """1 for the first."""
    count: int
    """Parameters in all."""
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True)
class Conversion:
    """What `convert` did."""

    path: Path
    nbytes: int
    """Size of the new file."""
    source_nbytes: int
    """Bytes of the parameters in the source."""
    types: Mapping[str, Choice]
    """Tensor name in the new file -> its type and the reason for it."""
    has_tokenizer: bool
    needs_tokenizer: bool = True
    """False for a control network, which reads no text of its own."""

    @property
    def histogram(self) -> dict[str, int]:
        """Type -> number of tensors."""
        return dict(Counter(choice.dtype for choice in self.types.values()).most_common())


@dataclass(frozen=True)
class _Job:
    """One parameter on its way into the new file."""

    binding: Binding
    choice: Choice
    tensor: NewTensor
    adapters: Sequence[tuple[_core.Adapter, float]]
    """What is merged into it."""
    row: int = 0
    """Where it begins in the tensor, which holds several parameters if names are fused."""

    @property
    def offset(self) -> int:
        """Bytes before it in the tensor's data."""
        row = math.prod(self.binding.entry.shape[1:])
        return DTYPES[self.tensor.dtype].nbytes(self.row * row)


def convert(
    src: str | PathLike[str],
    dst: str | PathLike[str],
    weight_type: str = "q8_0",
    rules: Mapping[str, str] | Sequence[str] | None = None,
    *,
    vae: Autoencoders | None = None,
    text_encoders: TextEncoders | None = None,
    tokenizer: Tokenizers | None = None,
    family: str | None = None,
    prediction: str | None = None,
    defaults: Mapping[str, object] | None = None,
    preview: Projection | None = None,
    loras: Sequence[LoraLike] | LoraLike | None = None,
    callback: Callable[[ConvertEvent], None] | None = None,
    threads: int = 0,
    overwrite: bool = True,
) -> Conversion:
    """Write a model as one GGUF with everything that is needed to run it; or a control network.

    Args:
        src: a model file of any supported layout, or a diffusers folder; a ControlNet or a T2I adapter, which takes
            no other options than types, `callback`, `threads` and `overwrite`.
        dst: the new file. It appears under this name complete, or not at all.
        weight_type: f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k or q2_k.
            Parameters that suffer from it keep a larger type: see docs/model-files.md.
        rules: types for parameters of the caller's choice: a mapping from patterns over
            ``<component>.<canonical name>`` (or ``kind:kernel``, ``kind:matrix``, ``kind:vector``)
            to types, or a list of ``"pattern=type"``. The first match wins.
        vae: an autoencoder to take instead of the model's.
        text_encoders: text encoders to take instead of the model's.
        tokenizer: a tokenizer, or the path of one; a mapping from the text encoders' names where there are several.
            None takes the model's own.
        family: take the model for a member of this family; None to find out.
        prediction: what the denoiser predicts, where the file does not say it; None to find out.
        defaults: what a generation takes where the caller says nothing, in place of the model's own:
            any of ``width``, ``height``, ``steps``, ``guidance``, ``sampler``, ``schedule``, ``eta``, ``shift``.
            The model's own are also its recipe's, if its name asks for one (docs/recipes.md).
        preview: colours of previews, see :func:`sdengine.previews.fit_factors`; None keeps those that the source
            brings, if any.
        loras: LoRAs to merge into the weights before they are quantized: paths, (path, scale), ...
            (docs/adapters.md).
        callback: called after every tensor. An exception in it ends the conversion and comes out.
        threads: 0 takes all cores.
        overwrite: replace an existing file.

    Raises:
        ParameterError: an unknown type or family, a bad rule or default, an option that a control network has not,
            or `dst` exists and must not be replaced.
        OutputError: `dst` cannot be written, or the disk is too small.
        UnsupportedModelError, WeightsError, FormatError: `src` cannot be used.
    """
    weight_type, own_rules = check_type(weight_type), parse_rules(rules)
    if not isinstance(threads, int) or not 0 <= threads <= 512:
        raise ParameterError(f"threads must be 0 (automatic) to 512, not {threads!r}")
    try:
        dst = Path(dst).resolve()  # a link stays, what it points to is replaced
        taken, usual = dst.exists(), dst.is_file()
    except (OSError, ValueError) as error:
        raise ParameterError(f"{str(dst)[:80]!r} cannot be a file's name: {error}") from None
    if taken and not (overwrite and usual):
        raise ParameterError(f"{dst} exists; choose another name, or overwrite=True for a file")
    control = plan_control_alone(src)
    if control is not None:
        options = (vae, text_encoders, tokenizer, family, prediction, defaults, preview, loras)
        if any(option is not None for option in options):
            raise ParameterError(
                f"{src} is {CONTROL.of_kind(control.kind).title}: it takes weight_type and rules, and no options of"
                " a model"
            )
        component = CONTROL.of_kind(control.kind)
        jobs = [*_jobs(component, control, weight_type, own_rules, Merge())]
        fields = _control_fields(control, Path(src))
        conversion = _write(dst, control.name, fields, jobs, callback, threads)
        return replace(conversion, needs_tokenizer=False)
    plan = plan_model(src, vae, text_encoders, family=family, prediction=prediction)
    plan, _ = as_published(plan, prediction is not None)
    merge, plan = merge_of(plan, loras)
    if defaults:
        plan = replace(plan, defaults=_with_defaults(plan.defaults, defaults))
    words = _tokenizer_fields(plan, tokenizer)
    jobs = [
        job
        for part in plan.components.values()
        for job in _jobs(_component(plan, part), part, weight_type, own_rules, merge)
    ]
    fields = {**_fields(plan, Path(src), preview), **words}
    conversion = _write(dst, plan.family.name, fields, jobs, callback, threads)
    return replace(conversion, has_tokenizer=bool(words))


def _write(
    dst: Path,
    architecture: str,
    fields: Mapping[str, Any],
    jobs: Sequence[_Job],
    callback: Callable[[ConvertEvent], None] | None,
    threads: int,
) -> Conversion:
    """Write the file, and say what is in it."""
    tensors = list(dict.fromkeys(job.tensor for job in jobs))
    with new_file(dst, _HEADER_BYTES + sum(tensor.nbytes for tensor in tensors)) as part_file:
        with output_errors(dst):
            offsets = write_header(part_file, architecture, fields, tensors)
        _write_data(part_file, jobs, offsets, callback, threads)
        size = part_file.stat().st_size
    return Conversion(
        path=dst,
        nbytes=size,
        source_nbytes=sum(job.binding.entry.nbytes for job in jobs),
        types={job.tensor.name: job.choice for job in jobs},
        has_tokenizer=False,
    )


def _component(plan: ModelPlan, part: ComponentPlan) -> Component:
    return plan.family.component(part.name).of_kind(part.kind)


_DEFAULTS: Mapping[str, type] = {
    "width": int,
    "height": int,
    "steps": int,
    "guidance": float,
    "sampler": str,
    "schedule": str,
    "eta": float,
    "shift": float,
}
"""The defaults that a caller may choose."""


def _with_defaults(own: Defaults, given: Mapping[str, object]) -> Defaults:
    """The model's defaults with the caller's values in their place."""
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        kind = _DEFAULTS.get(name)
        if kind is None:
            raise ParameterError(f"there is no default {name!r}; known are {', '.join(_DEFAULTS)}")
        taken = float(value) if kind is float and type(value) is int else value
        if type(taken) is not kind:
            raise ParameterError(
                f"the default {name} = {value!r}; expected one of type {kind.__name__}"
            )
        chosen[name] = taken
    return replace(own, **chosen)


def _jobs(
    component: Component,
    part: ComponentPlan,
    weight_type: str,
    rules: Sequence[TypeRule],
    merge: Merge,
) -> Iterator[_Job]:
    """The parameters of a component with their names, types and shapes in the new file."""
    prefix, dialect = component.written
    table = next(table for table in component.tables if table.name == dialect)
    names = NameMap.of_network(table, part.config)
    targets: dict[str, list[tuple[Binding, MappedName]]] = {}
    for binding in part.bindings:
        target = names.to_file(binding.name)[0]
        targets.setdefault(target.name, []).append((binding, target))
    for name, parts in targets.items():
        choices = [
            choose_type(f"{part.name}.{binding.name}", binding.entry.shape, weight_type, rules)
            for binding, _ in parts
        ]
        choice = min(choices, key=lambda choice: WEIGHT_TYPES.index(choice.dtype))  # the best
        shape = (sum(b.entry.shape[0] for b, _ in parts), *parts[0][0].entry.shape[1:])
        original = (*shape, 1, 1) if parts[0][1].kernel else shape
        stored = original
        if len(original) > 2 and DTYPES[choice.dtype].is_quantized:
            # Blocks run along the last axis, so a quantized kernel is stored as a matrix.
            stored = (shape[0], math.prod(shape[1:]))
        tensor = NewTensor(prefix + name, choice.dtype, stored, original)
        for binding, target in parts:
            yield _Job(
                binding,
                choice,
                tensor,
                merge.of(part.name, binding.name),
                _first_row(binding, target, shape[0]),
            )


def _first_row(binding: Binding, target: MappedName, rows: int) -> int:
    """Where a parameter begins in a tensor of `rows` rows."""
    index = target.part[0] if target.part is not None else 0
    return index * binding.entry.shape[0] + (rows if index < 0 else 0)


def _tokenizer_fields(plan: ModelPlan, all_given: Tokenizers | None) -> dict[str, Any]:
    """The tokenizers to store: those given, or those that travel with the source."""
    clip: dict[str, ClipTokenizer] = {}
    text: dict[str, JsonTokenizer | SentencePieceTokenizer] = {}
    for encoder, source in plan.tokenizers.items():
        given = given_tokenizer(plan.family, all_given, encoder)
        try:
            if source.kind != CLIP:
                text[encoder] = _text_tokenizer(source, given)
            elif isinstance(given, ClipTokenizer):
                clip[encoder] = given
            elif given is not None:
                clip[encoder] = load_clip_tokenizer(Path(given))
            else:
                clip[encoder] = source.open(download=False)
        except TokenizerError:
            if given is not None or source.path is not None:
                raise
            # The source has none and this machine neither: the new file asks for it when loaded.
    return {**to_gguf_fields(clip), **to_text_fields(text)}


def _text_tokenizer(
    source: TokenizerSource, given: str | PathLike[str] | ClipTokenizer | None
) -> JsonTokenizer | SentencePieceTokenizer:
    if given is None:
        return source.open_text()
    if isinstance(given, ClipTokenizer):
        raise ParameterError(
            f"tokenizer= is one of CLIP; the {source.encoder} is a language model and takes the path"
            " of its own"
        )
    return load_text_tokenizer(Path(given), LAYOUTS[source.kind].added)


def _fields(plan: ModelPlan, source: Path, preview: Projection | None) -> dict[str, Any]:
    """The metadata that make the file self-contained; `sdengine.loading` reads them back."""
    defaults = asdict(plan.defaults)
    timesteps = defaults.pop("timesteps")
    fields: dict[str, Any] = {
        **_kept(plan.metadata),
        "general.name": _title(plan, source),
        "general.quantization_version": _QUANTIZATION_VERSION,
        "sdengine.family": plan.family.name,
        "sdengine.variant": plan.title,
        "sdengine.empty_negative_is_zeros": plan.family.empty_negative_is_zeros,
        "sdengine.defaults": json.dumps(defaults),
        "sdengine.timesteps": list(timesteps or ()),
        "sdengine.scheduler": json.dumps(asdict(plan.scheduler)),
    }
    for part in plan.components.values():
        fields[f"sdengine.config.{part.name}"] = json.dumps(dict(part.config))
    preview = preview or previews.stored(plan.metadata)
    if preview is not None:
        fields[previews.METADATA_KEY] = preview.numbers()
    return fields


def _control_fields(control: ComponentPlan, source: Path) -> dict[str, Any]:
    """The metadata of a control network."""
    return {
        "general.name": source.absolute().stem,
        "general.quantization_version": _QUANTIZATION_VERSION,
        f"sdengine.config.{control.name}": json.dumps(dict(control.config)),
    }


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the source says that it is called, which is read again."""
    return {key: metadata[key] for key in TITLES if isinstance(metadata.get(key), str)}


def _title(plan: ModelPlan, source: Path) -> str:
    """The source's name, by which recipes are found; through several conversions the first one's."""
    title = plan.metadata.get("general.name")
    if "sdengine.family" in plan.metadata and isinstance(title, str):
        return title
    return source.absolute().stem


def _write_data(
    path: Path,
    jobs: Sequence[_Job],
    offsets: Mapping[str, int],
    callback: Callable[[ConvertEvent], None] | None,
    threads: int,
) -> None:
    total = sum(tensor.nbytes for tensor in {job.tensor for job in jobs})
    done = 0
    for number, job in enumerate(jobs, 1):
        entry, name = job.binding.entry, job.tensor.name
        try:
            done += _core.transcode(
                entry.dtype,
                entry.shape,
                entry.path,
                entry.offset,
                entry.nbytes,
                entry.strides,
                job.binding.transpose,
                dst_path=path,
                dst_offset=offsets[name] + job.offset,
                dst_dtype=job.tensor.dtype,
                threads=threads if entry.elements > _SMALL else 1,
                adapters=job.adapters,
                parameter=job.binding.name,
                padding=job.binding.padding,
                scale=entry.scale,
            )
        except WeightsError as error:
            raise WeightsError(f"{name!r} as {job.tensor.dtype}: {error}") from None
        if callback is not None:
            callback(ConvertEvent(name, number, len(jobs), done, total))
