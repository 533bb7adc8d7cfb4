"""Every error that sdengine raises on purpose.

One small hierarchy: catch :class:`SDEngineError` for all of them, or one kind. Each message says what was found, what
was expected and what to do about it. The native module raises the same classes.
"""

from __future__ import annotations


class SDEngineError(Exception):
    """Base of every error that sdengine raises on purpose."""


class FormatError(SDEngineError):
    """A file is not what it claims to be: wrong magic, truncated, lengths or offsets that do not fit."""


class UnsupportedModelError(SDEngineError):
    """The file is readable, but no supported model family matches it."""


class WeightsError(SDEngineError):
    """A parameter is missing, has the wrong shape, an unknown type, or holds values that are not numbers."""


class TokenizerError(SDEngineError):
    """A tokenizer is missing or unusable."""


class ParameterError(SDEngineError, ValueError):
    """An argument has a value outside its range (the message gives the range or the choices)."""


class NumericError(SDEngineError, ArithmeticError):
    """A computation produced NaN or infinity; the message names the stage or the sampling step."""


class DeviceError(SDEngineError):
    """A device is missing or failed."""


class OutOfMemoryError(SDEngineError, MemoryError):
    """Memory ran out; the message says how much was asked for."""


class OutputError(SDEngineError, OSError):
    """A result could not be written; nothing was left under the final name."""


class Cancelled(SDEngineError):  # noqa: N818 - an event, not a fault
    """The run was cancelled by the caller."""


class UnwiseWarning(UserWarning):
    """Settings that are allowed but known to give bad pictures; the message says what to use instead."""
