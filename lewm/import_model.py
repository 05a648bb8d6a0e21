"""Somebody else's weights as a checkpoint of ours.

A LeWM checkpoint of stable-worldmodel or le-wm (`weights.pt` beside `config.json`) becomes one whole: every tensor of
the source is used and none is made up, so the answers are the source's own up to rounding. The predictor of V-JEPA 2-AC
takes the place of that in a checkpoint of ours, which brings the encoder.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewm.ac_layout import load_ac_tensors, read_ac_tensors
from lewm.checkpoint import Origin, load, save_checkpoint
from lewm.peer_layout import convert, describe, read_tensors
from lewm.schema import SchemaError, build, read_json
from lewm.world_model import ModelFacts, WorldModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What both projects normalise pictures with; their checkpoints do not say it."""


@dataclass(frozen=True)
class DataFacts:
    """What the source leaves out: the task, and the statistics of the actions it was trained on."""

    task: str
    """Task the model was trained for."""
    action_low: tuple[float, ...]
    """Lower bound of each raw action entry."""
    action_high: tuple[float, ...]
    """Upper bound of each raw action entry."""
    action_mean: tuple[float, ...]
    """Mean of each raw action entry that training subtracted."""
    action_std: tuple[float, ...]
    """Standard deviation of each raw action entry that training divided by; at least 0.001."""
    frame_skip: int = 5
    """Environment steps per block."""
    control_dt: float = 0.1
    """Seconds per environment step."""

    def __post_init__(self) -> None:
        names = ("action_low", "action_high", "action_mean", "action_std")
        for name in names:
            values = getattr(self, name)
            if len(values) != len(self.action_mean) or not values:
                raise ValueError(
                    f"{name} has {len(values)} entries and action_mean {len(self.action_mean)}; give one number per "
                    "entry of a raw action"
                )
            if name in ("action_mean", "action_std") and not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {values}; every entry must be finite")
        if not all(low < high for low, high in zip(self.action_low, self.action_high)):
            raise ValueError(f"action_low is {self.action_low}; each must be below action_high, {self.action_high}")
        if min(self.action_std) < 1e-3:
            raise ValueError(f"action_std is {self.action_std}; each must be at least 0.001")
        if self.frame_skip < 1 or not self.control_dt > 0:
            raise ValueError(f"frame_skip is {self.frame_skip} and control_dt {self.control_dt}; both must be positive")


def data_facts(given: Mapping[str, Any], stats: Path | None) -> DataFacts:
    """Facts from options and from a JSON file with any of the same names; what is given beats the file.

    Raises SchemaError naming the first that neither says.
    """
    said = (read_json(stats) if stats is not None else {}) | {k: v for k, v in given.items() if v is not None}
    for name in ("task", "action_low", "action_high", "action_mean", "action_std"):
        if name not in said:
            raise SchemaError(
                f"--{name.replace('_', '-')} is missing and the checkpoint does not say it: give it, or a --stats FILE "
                f'(JSON) with "{name}"'
            )
    return build(DataFacts, said, "command line" if stats is None else f"command line and {stats}")


def import_model(source: Path, out: Path, data: DataFacts) -> Path:
    """Write `source`, a folder or its .pt file, as the checkpoint folder `out`; an older checkpoint is replaced.

    Raises what `read_model` does, and ValueError when `out` holds something else.
    """
    if out.exists() and not (out / "model.safetensors").is_file():
        raise ValueError(f"{out} exists and is not a lewm checkpoint; it would be replaced: choose another --out")
    model = read_model(source, data)
    weights, config = _files(source)
    origin = Origin(data.task, {"size": model.facts.size}, "", (), (), data.control_dt, held_out=0.0, seed=0)
    training = {
        "imported": {
            "weights": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "config": read_json(config),
        }
    }
    save_checkpoint(out, model, None, origin, training)
    return out


def import_predictor(source: Path, checkpoint: Path, out: Path) -> Path:
    """Write `out`: a copy of our `checkpoint` whose ac predictor has the weights of V-JEPA 2-AC in the file `source`.

    Heads stay: they read latents of frames, which come from the encoder. Raises what `read_ac_tensors` and
    `load_ac_tensors` do, and ValueError when `out` holds something else.
    """
    if out.exists() and not (out / "model.safetensors").is_file():
        raise ValueError(f"{out} exists and is not a lewm checkpoint; it would be replaced: choose another --out")
    ours = load(checkpoint)
    load_ac_tensors(read_ac_tensors(source), ours.model, source)
    training = read_json(checkpoint / "config.json")["training"]
    training["imported_predictor"] = {
        "weights": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    heads = {"proposal": ours.proposal, "readout": ours.readout}
    save_checkpoint(out, ours.model, ours.cost_to_go, ours.origin, training, **heads)  # type: ignore[arg-type]
    return out


def read_model(source: Path, data: DataFacts) -> WorldModel:
    """The source as a model of ours, for inference.

    Raises FileNotFoundError for a missing part, SchemaError for a config.json that describes another model, and
    ValueError for weights that are not plain tensors or naming the first tensor that does not fit.
    """
    weights, config = _files(source)
    architecture, size = describe(read_json(config), str(config), data.frame_skip, len(data.action_mean))
    facts = ModelFacts(
        size=size,
        action_low=data.action_low,
        action_high=data.action_high,
        action_mean=data.action_mean,
        action_std=data.action_std,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
    )
    tensors = read_tensors(weights)
    model = WorldModel(architecture, facts).eval().requires_grad_(False)
    model.load_state_dict(convert(tensors, model, weights))
    return model


def _files(source: Path) -> tuple[Path, Path]:
    """The weights and their config.json."""
    weights = source
    if source.is_dir():
        found = sorted(source.glob("*.pt"))
        if len(found) > 1 and source / "weights.pt" not in found:
            raise ValueError(f"{source} holds {', '.join(path.name for path in found)}; name the one to import")
        weights = found[0] if len(found) == 1 else source / "weights.pt"
    for path in (weights, weights.parent / "config.json"):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: a LeWM checkpoint is a weights.pt beside its config.json")
    return weights, weights.parent / "config.json"
