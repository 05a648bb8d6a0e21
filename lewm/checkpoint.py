"""A checkpoint is a folder: `model.safetensors`, `config.json`, `README.md`. Loading executes nothing.

A frozen encoder is named in it, not copied: its path, and the SHA-256 of its weights, without which it is refused.
`config.json` holds all that the weights alone do not say: architecture, frame skip, action and pixel statistics, the
task and the renderer it saw. Trainer state lives elsewhere (`lewm.train`).
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lewm.cost_to_go import CostToGo, CostToGoConfig
from lewm.data.store import Store, split_episodes
from lewm.nets.frozen import PIXELS, FrozenConfig, FrozenEncoder, frozen_in
from lewm.proposal import Proposal, ProposalConfig
from lewm.readout import Readout, ReadoutConfig
from lewm.schema import build
from lewm.world_model import ModelConfig, ModelFacts, WorldModel

FORMAT = "lewm-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: what it may be evaluated on, and with which pictures."""

    task: str
    """Task name, as in `envs.TASKS`."""
    settings: dict[str, Any]
    """Settings of the task the recordings were made with."""
    renderer_fingerprint: str
    """Hash of a canonical frame: other pictures than these are another world to the model."""
    state_names: tuple[str, ...]
    """Entries of the task's state."""
    angle_names: tuple[str, ...]
    """Which of them are angles."""
    control_dt: float
    """Seconds per environment step."""
    held_out: float
    """Share of the episodes that training did not see."""
    seed: int
    """Training seed; with `held_out` and `episodes` it decides which episodes those are."""
    episodes: int = 0
    """Episodes that there were, seen or not; 0 in checkpoints of an older lewm, which did not count them."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with everything needed to plan with it."""

    model: WorldModel
    cost_to_go: CostToGo | None
    origin: Origin
    path: Path
    proposal: Proposal | None = None
    readout: Readout | None = None


def split_of(checkpoint: Checkpoint, store: Store) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Episodes of the recordings that the training of a checkpoint saw, and those it did not.

    Raises ValueError for recordings the model cannot read, and for more or fewer episodes than it was trained on: they
    would be split otherwise, and some that it saw would count as unseen.
    """
    check_recordings(checkpoint, store)
    origin = checkpoint.origin
    if origin.episodes and store.num_episodes != origin.episodes:
        raise ValueError(
            f"{store.path} holds {store.num_episodes} episodes, but {checkpoint.path} was trained on recordings of "
            f"{origin.episodes}, so that nobody knows which of these it saw: pass the recordings it was trained on, or "
            "goals drawn from others by `lewm manifest --held-out 1`"
        )
    return split_episodes(store.num_episodes, origin.held_out, origin.seed)


def check_recordings(checkpoint: Checkpoint, store: Store) -> None:
    """Raise ValueError for recordings of another task, or of pictures or actions the model does not know."""
    meta, facts = store.meta, checkpoint.model.facts
    if meta.task != checkpoint.origin.task:
        raise ValueError(
            f"{store.path} holds recordings of {meta.task}, but {checkpoint.path} was trained on "
            f"{checkpoint.origin.task}: pass the recordings of that task"
        )
    for what, given, known in (
        ("frames", meta.frame, (facts.size, facts.size, facts.channels)),
        ("actions", (meta.action_dim,), (facts.action_dim,)),
    ):
        if tuple(given) != known:
            raise ValueError(f"{store.path} holds {what} of shape {tuple(given)}; {checkpoint.path} reads {known}")


@dataclass(frozen=True)
class _Header:
    """`config.json`."""

    format: str
    version: int
    model: ModelConfig
    facts: ModelFacts
    origin: Origin
    cost_to_go: CostToGoConfig | None
    lewm_version: str
    training: dict[str, Any]
    proposal: ProposalConfig | None = None
    """Folders from before there were proposals do not mention it, nor the readout."""
    readout: ReadoutConfig | None = None


def save_checkpoint(
    path: Path,
    model: WorldModel,
    cost_to_go: CostToGo | None,
    origin: Origin,
    training: dict[str, Any],
    card: str = "",
    proposal: Proposal | None = None,
    readout: Readout | None = None,
) -> None:
    """Write the folder whole: it appears under its name only when it is complete. Replaces an older one."""
    from lewm import __version__

    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(_with_full_path(model.config)),
        "facts": asdict(model.facts),
        "origin": asdict(origin),
        "cost_to_go": asdict(cost_to_go.config) if cost_to_go else None,
        "proposal": asdict(proposal.config) if proposal else None,
        "readout": asdict(readout.config) if readout else None,
        "lewm_version": __version__,
        "training": training,
    }
    optional = {"cost_to_go": cost_to_go, "proposal": proposal, "readout": readout}
    parts: dict[str, nn.Module] = {"model": model} | {name: part for name, part in optional.items() if part}
    tensors = {
        f"{name}.{k}": v.contiguous().cpu() for name, part in parts.items() for k, v in part.state_dict().items()
    }
    save_file(tensors, partial / "model.safetensors")
    (partial / "config.json").write_text(json.dumps(header, indent=2) + "\n")
    (partial / "README.md").write_text(card or _card(header, model))
    if path.exists():
        retired = path.with_name(path.name + ".old")
        shutil.rmtree(retired, ignore_errors=True)
        path.replace(retired)
        partial.replace(path)
        shutil.rmtree(retired)
    else:
        partial.replace(path)


def load(path: str | Path, device: str = "cpu") -> Checkpoint:
    """Load a checkpoint folder for inference, on `device`.

    Needs neither the recordings nor a configuration file. Raises FileNotFoundError when a part is missing and
    ValueError naming the first key, shape or version that does not fit.
    """
    folder = Path(path)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: {folder} is not a lewm checkpoint (it holds config.json and "
                "model.safetensors); pass the folder that `lewm train` wrote"
            )
    header = _read_header(folder / "config.json")
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{folder / 'model.safetensors'} cannot be read ({error}): copy the checkpoint again"
        ) from error
    model = _build_model(header, tensors, folder)
    parts: dict[str, nn.Module] = {"model": model}
    head = CostToGo(header.cost_to_go, model.latent_dim, model.tokens) if header.cost_to_go else None
    if head is not None:
        parts["cost_to_go"] = head
    proposal = None
    if header.proposal is not None:
        proposal = Proposal(header.proposal, model.latent_dim, model.tokens, model.action_dim)
        parts["proposal"] = proposal
    readout = None
    if header.readout is not None:
        turning = sum(name in header.origin.angle_names for name in header.readout.entries)
        readout = Readout(header.readout, model.latent_dim * model.tokens, turning)
        parts["readout"] = readout
    _load_strictly(parts, tensors, folder / "model.safetensors")
    for part in parts.values():
        part.to(device).eval().requires_grad_(False)
    return Checkpoint(model, head, header.origin, folder, proposal, readout)


def _build_model(header: _Header, tensors: dict[str, Tensor], folder: Path) -> WorldModel:
    """The model of a folder; a frozen encoder is looked for, and its weights are compared, before anything else."""
    try:
        model = WorldModel(header.model, header.facts)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} was trained on a frozen encoder: {error}; where it moved, set model.encoder.path in "
            f"{folder / 'config.json'}"
        ) from error
    for name, module in model.named_modules():
        if isinstance(module, FrozenEncoder):
            module.check_weights(tensors.get(f"model.{name}.weights_sha256"))
    return model


def _with_full_path(config: ModelConfig) -> ModelConfig:
    """The same with a frozen encoder's folder named so that it is found from every working directory."""
    encoder = config.encoder
    if not isinstance(encoder, FrozenConfig) or encoder.path == PIXELS or not Path(encoder.path).expanduser().is_dir():
        return config
    return replace(config, encoder=replace(encoder, path=str(Path(encoder.path).expanduser().resolve())))


def _read_header(path: Path) -> _Header:
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): copy the checkpoint again") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}; this is not a lewm checkpoint")
    if raw.get("version") != VERSION:
        raise ValueError(f"{path}: format version {raw.get('version')} is not {VERSION}; use the lewm that wrote it")
    return build(_Header, raw, str(path))


def _load_strictly(parts: dict[str, nn.Module], tensors: dict[str, Tensor], path: Path) -> None:
    wanted = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all): config.json describes more")
    if extra := sorted(tensors.keys() - wanted.keys()):
        raise ValueError(
            f"{path}: tensor {extra[0]} is not part of the model config.json describes ({len(extra)} in all)"
        )
    for key, value in wanted.items():
        if tensors[key].shape != value.shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(tensors[key].shape)}; the model needs {tuple(value.shape)}"
            )
    for name, part in parts.items():
        part.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})


def _card(header: dict[str, Any], model: WorldModel) -> str:
    """A model card: what it is, what it saw, how to load it."""
    origin, config = header["origin"], header["model"]
    count = sum(p.numel() for p in model.parameters())
    head = "with" if header["cost_to_go"] else "without"
    proposal = "with" if header["proposal"] else "without"
    encoder = f"{config['encoder']['name']} encoder"
    if (frozen := frozen_in(model.encoder)) is not None:
        encoder += f" ({frozen.config.path}, SHA-256 {frozen.backbone.weights_sha256}, not in this folder)"
    return f"""# lewm world model: {origin["task"]}

{encoder}, {config["predictor"]["name"]} predictor, {count:,} parameters,
{model.tokens} token(s) of width {model.latent_dim} per frame, {head} a cost-to-go head, {proposal} a proposal.
One prediction spans {config["frame_skip"]} actions.

- pictures: {header["facts"]["size"]} x {header["facts"]["size"]}, {config["frame_stack"]} stacked
- task settings: `{json.dumps(origin["settings"])}`
- training: `{json.dumps(header["training"])}`
- written by lewm {header["lewm_version"]}

```python
import lewm
agent = lewm.Agent.load("path/to/this/folder")
```
"""
