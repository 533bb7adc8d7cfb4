"""Names of BERT encoders: those of transformers (canonical)."""

from __future__ import annotations

from sdengine.keys.engine import KeyTable, Rule

TRANSFORMERS = KeyTable(
    name="transformers",
    rules=(Rule("embeddings.", "embeddings."), Rule("encoder.layer.", "encoder.layer.")),
    markers=(
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.self.query.weight",
    ),
    # What was trained beside the encoder, and numbers in order.
    ignored=("pooler.*", "cls.*", "embeddings.position_ids"),
)
