"""Writing an encoder folder; `lewm.nets.pretrained` reads it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lewm import __version__
from lewm.nets.pretrained import FORMAT, HEADER, VERSION, WEIGHTS, EncoderHeader, PretrainedFacts
from lewm.nets.token_vit import TokenViT
from lewm.pretrain.config import PretrainRun
from lewm.pretrain.probe import TokenHealth


def save_encoder(
    path: Path, encoder: TokenViT, about: PretrainedFacts, run: PretrainRun, task: str, health: TokenHealth | None
) -> None:
    """Write the folder whole: it appears under its name only when it is complete. Replaces an older one."""
    training: dict[str, Any] = {"method": asdict(run.method), "train": asdict(run.train)}
    training["probe"] = health.scalars if health else {}
    header = EncoderHeader(
        FORMAT, VERSION, about, run.method.name, task, run.train.held_out, run.train.seed, __version__, training
    )
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({key: value.contiguous().cpu() for key, value in encoder.state_dict().items()}, partial / WEIGHTS)
    (partial / HEADER).write_text(json.dumps(asdict(header), indent=2) + "\n")
    (partial / "README.md").write_text(_card(header, sum(p.numel() for p in encoder.parameters())))
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)


def _card(header: EncoderHeader, count: int) -> str:
    """What it is, what it saw, how to use it."""
    about, size = header.pretrained, header.pretrained.encoder
    clips = f"clips of {about.frames} frames, tubelets of {about.facts.tubelet}" if about.facts.video else "pictures"
    probes = "\n".join(f"- {name}: {value:.3f}" for name, value in header.training["probe"].items())
    return f"""# lewm encoder: {header.method} on {header.task}

A vision transformer of {count:,} parameters, depth {size.depth}, width {size.width}, on {about.size} x {about.size}
pictures in patches of {size.patch}, trained on {clips}; no labels, no other data. `config.json` holds every setting.

Measured on held-out episodes at the end of the training (linear probes of the recorded state, spread, rank):

{probes or "- nothing was measured"}

Written by lewm {header.lewm_version}. Train a world model on it:

    lewm train RUN --data STORE --out OUT --model.encoder '{{name: frozen, path: THIS_FOLDER, grid: 4}}' \\
      --model.predictor '{{name: ac}}' --objective '{{name: prediction}}'

```python
from lewm.nets.pretrained import load_pretrained_encoder
encoder = load_pretrained_encoder("path/to/this/folder")   # normalised pictures (B, C, Y, X) to tokens (B, S, D)
```
"""
