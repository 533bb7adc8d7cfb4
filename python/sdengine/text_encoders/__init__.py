"""A model's text encoders with their tokenizers: texts in, what the denoiser reads out."""

from sdengine.text_encoders.base import MAX_BATCH, EncodedText, Encoder, Text
from sdengine.text_encoders.clip import ClipEncoder
from sdengine.text_encoders.language import AbsentEncoder, LanguageModelEncoder
from sdengine.text_encoders.opening import open_encoders
from sdengine.text_encoders.sight import Eyes
from sdengine.text_encoders.together import TextEncoders

__all__ = [
    "MAX_BATCH",
    "AbsentEncoder",
    "ClipEncoder",
    "EncodedText",
    "Encoder",
    "Eyes",
    "LanguageModelEncoder",
    "Text",
    "TextEncoders",
    "open_encoders",
]
