"""Take a trained demo model apart again, into the folder that further training starts from.

::

    python -m demo.unpack python/sdengine/data/demo.gguf runs/demo

The adapters (demo/lora.py, demo/controlnet.py) and the wide autoencoder (demo/wide_vae.py) build on
the model that is shipped, so that nobody has to train it anew. Weights come out as they are in the
file: rounded to its types, and the latents' mean and scale folded in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from demo import text_encoder, tokenizer, unet, vae
from demo.export import export
from demo.package import read_values
from sdengine.loading import ComponentPlan, plan_model


def _fill(model: nn.Module, plan: ComponentPlan, prefix: str = "") -> None:
    """Load a component of the file into a model whose names lack ``prefix``."""
    # Copies, for torch wants memory that may be written to.
    model.load_state_dict(
        {b.name.removeprefix(prefix): torch.tensor(read_values(b.entry)) for b in plan.bindings}
    )


def unpack(source: Path, folder: Path) -> None:
    """Write the parts of the model at ``source`` as the stages of demo/train.py would.

    The tokenizer is not read but learnt again, for it follows from the captions alone.
    """
    parts = plan_model(source).components
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.build(folder / "tokenizer")
    words = len(tokenizer.load_tokenizer(folder))
    if words != parts["text_encoder"].config["vocab_size"]:
        raise SystemExit(f"{source} knows other words than the {words} of today's captions")
    encoder = text_encoder.new_model(words)
    _fill(encoder, parts["text_encoder"], "text_model.")
    encoder.save_pretrained(folder / "text_encoder")
    autoencoder = vae.new_model()
    _fill(autoencoder, parts["vae"])
    autoencoder.save_pretrained(folder / "vae")
    denoiser = unet.new_model()
    _fill(denoiser, parts["unet"])
    export(folder, denoiser.eval(), unet.new_scheduler())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="the demo model's GGUF")
    parser.add_argument("folder", type=Path, help="as given to demo.train")
    options = parser.parse_args()
    unpack(options.source, options.folder)


if __name__ == "__main__":
    main()
