"""The offline goal-conditioned baselines: one table of how each is fitted and acts, the folder each is kept in.

All of them see the frozen latents of a checkpoint's encoder, on the episodes its training saw, and act one block at a
time from the latents of the present frame and of the goal picture, most without a search: what differs from a planner
is the deciding alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lewm import __version__
from lewm.baselines.gcbc import GCBCConfig, GCBCMethod, build_gcbc, fit_gcbc
from lewm.baselines.gciql import GCIQLConfig, GCIQLMethod, build_gciql, fit_gciql
from lewm.baselines.gcivl import GCIVLConfig, GCIVLMethod, build_gcivl, fit_gcivl
from lewm.baselines.heads import act_by_actor
from lewm.baselines.hilp import HILPConfig, HILPMethod, act_by_hilp, build_hilp, fit_hilp
from lewm.baselines.inverse import GC_IDM, InverseMethod, act_by_inverse, build_inverse
from lewm.baselines.tdmpc2 import TDMPC2Config, TDMPC2Heads, TDMPC2Method, act_by_gaussian_actor, fit_tdmpc2
from lewm.baselines.tdmpc2_agent import TDMPC2Agent
from lewm.checkpoint import Checkpoint, split_of
from lewm.data.store import Store
from lewm.heads_training import Fit
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, Situation
from lewm.planning.informed_start import Follow
from lewm.proposal import fit_proposal
from lewm.schema import SchemaError, build, read_json, write_json
from lewm.training_loop import step_seed
from lewm.world_model import WorldModel
from planners import Plan, WarmStart

FORMAT = "lewm-baseline"
VERSION = 1

OfflineMethod = GCBCMethod | GCIVLMethod | GCIQLMethod | HILPMethod | InverseMethod | TDMPC2Method
"""Methods that act with a folder of `lewm train-baseline` and the encoder of the checkpoint."""


Act = Callable[[nn.Module, Checkpoint, Tensor, Tensor], Tensor]
"""Networks, checkpoint, latent_BKD and goal_BKD to the next raw block (B, A); it is clamped to the bounds."""


@dataclass(frozen=True)
class Offline:
    """One row of the table."""

    config: Any
    """The defaults: a frozen dataclass with at least `steps` and `batch`."""
    fit: Callable[[Any, Fit], tuple[nn.Module, float]]
    """Configuration and data to the trained networks, and the seconds it took; continues an interrupted fit."""
    build: Callable[[WorldModel, Any], nn.Module]
    """The same networks untrained, for loading into."""
    act: Act = act_by_actor
    """How it decides without a search."""
    plan: Callable[[Checkpoint, Any, Any, int], Agent] | None = None
    """For methods with a planner: checkpoint, method, networks and seed to the agent that searches."""


OFFLINE: Mapping[str, Offline] = {
    "gcbc": Offline(GCBCConfig(), fit_gcbc, build_gcbc),
    "gcivl": Offline(GCIVLConfig(), fit_gcivl, build_gcivl),
    "gciql": Offline(GCIQLConfig(), fit_gciql, build_gciql),
    "hilp": Offline(HILPConfig(), fit_hilp, build_hilp, act_by_hilp),
    "inverse": Offline(GC_IDM, fit_proposal, build_inverse, act_by_inverse),
    "tdmpc2": Offline(TDMPC2Config(), fit_tdmpc2, TDMPC2Heads, act_by_gaussian_actor, TDMPC2Agent),
}
"""Kind of method to how it is fitted and acts."""


@dataclass(frozen=True)
class Card:
    """`baseline.json`: what the networks beside it are, and what they were trained on."""

    format: str
    version: int
    kind: str
    """Row of the table."""
    config: dict[str, Any]
    """How it was built and trained."""
    encoder: str
    """Fingerprint of the encoder whose latents it reads, see `encoder_fingerprint`."""
    task: str
    """Task of the recordings."""
    held_out: float
    """Share of the episodes it did not see: the checkpoint's."""
    seed: int
    """The checkpoint's; decides the split, the initial weights and the draws."""
    episodes: int
    """Episodes it was trained on."""
    frames: int
    """Frames in them."""
    steps: int
    """Optimiser steps."""
    blocks: int
    """Blocks drawn in these steps, repeats counted."""
    seconds: float
    """Wall time of the training, encoding included; stretches before a kill count as far as they were kept."""
    parameters: int
    """Trained numbers."""
    device: str
    """Where it was trained."""
    versions: dict[str, str]
    """Of lewm and torch."""

    def summary(self, out: Path) -> str:
        """What the command says when it is done."""
        return (
            f"{self.kind}: {self.steps} steps on {self.episodes} episodes, {self.frames} frames, in "
            f"{self.seconds:.0f} s\n"
            f"baseline {out}\n"
            f"evaluate it as the method {{kind: {self.kind}, path: {out}}}, with the same checkpoint"
        )


def encoder_fingerprint(model: WorldModel) -> str:
    """A hash of all that makes latents of pictures and blocks of actions: encoder, its input scaling, frame skip."""
    config = model.config
    frames = [config.frame_skip, config.frame_stack, config.stack_stride]
    sha = hashlib.sha256(json.dumps([asdict(config.encoder), frames, asdict(model.facts)], sort_keys=True).encode())
    for name, value in sorted(model.encoder.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def train_offline(kind: str, config: Any, checkpoint: Checkpoint, store: Store, out: Path, quiet: bool = False) -> Card:
    """Fit a baseline on the episodes that the checkpoint's training saw; writes the folder `out`, resumes like `train`.

    Raises ValueError for recordings the checkpoint cannot read and when `out` holds a baseline of another kind,
    RuntimeError when it holds one of other settings or another model.
    """
    seen, _ = split_of(checkpoint, store)
    _check_out(out, kind)
    model, origin, row = checkpoint.model, checkpoint.origin, OFFLINE[kind]
    torch.manual_seed(step_seed(origin.seed, 0, 20))
    networks, seconds = row.fit(config, Fit(model, store, out / "train", origin.held_out, origin.seed, quiet))
    card = Card(
        format=FORMAT,
        version=VERSION,
        kind=kind,
        config=asdict(config),
        encoder=encoder_fingerprint(model),
        task=origin.task,
        held_out=origin.held_out,
        seed=origin.seed,
        episodes=len(seen),
        frames=store.frames_in(seen),
        steps=config.steps,
        blocks=config.steps * config.batch,
        seconds=round(seconds, 1),
        parameters=sum(p.numel() for p in networks.parameters()),
        device=model.device.type,
        versions={"lewm": __version__, "torch": torch.__version__},
    )
    partial = out / "model.partial"
    save_file({name: value.contiguous().cpu() for name, value in networks.state_dict().items()}, partial)
    partial.replace(weights_file(out))
    write_json(asdict(card), out / "baseline.json")
    return card


def weights_file(folder: str | Path) -> Path:
    """Where a folder keeps what it learned."""
    return Path(folder) / "model.safetensors"


def _check_out(out: Path, kind: str) -> None:
    """Raise ValueError for a folder that keeps a baseline of another kind."""
    card = out / "baseline.json"
    if card.exists() and read_json(card).get("kind") != kind:
        raise ValueError(f"{out} holds the baseline {read_json(card).get('kind')}: choose another --out, or delete it")


def read_card(path: str | Path, kind: str) -> Card:
    """The card of a folder. Raises FileNotFoundError for a missing part and ValueError for a folder of another kind."""
    folder = Path(path)
    for file in (folder / "baseline.json", weights_file(folder)):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: {folder} is no trained baseline; pass the --out of `lewm train-baseline {kind}`"
            )
    raw = read_json(folder / "baseline.json")
    if not isinstance(raw, dict) or (raw.get("format"), raw.get("version")) != (FORMAT, VERSION):
        raise SchemaError(f"{folder / 'baseline.json'}: this is not a {FORMAT} of version {VERSION}; train it again")
    card = build(Card, raw, str(folder / "baseline.json"))
    if card.kind != kind:
        raise ValueError(f"{folder} holds the baseline {card.kind}, not {kind}: correct the method's kind or its path")
    return card


def load_offline(path: str | Path, kind: str, checkpoint: Checkpoint) -> tuple[nn.Module, Card]:
    """The networks of a folder, on the checkpoint's device, for acting with its encoder.

    Raises what `read_card` raises, and ValueError for another task, another encoder and tensors that do not fit.
    """
    folder, card = Path(path), read_card(path, kind)
    if card.task != checkpoint.origin.task:
        raise ValueError(f"{folder} was trained on {card.task}, but {checkpoint.path} on {checkpoint.origin.task}")
    if card.encoder != encoder_fingerprint(checkpoint.model):
        raise ValueError(
            f"{folder} was trained on the latents of another encoder than that of {checkpoint.path}: evaluate it with "
            f"that one's checkpoint, or run `lewm train-baseline {kind} --checkpoint {checkpoint.path}` anew"
        )
    row = OFFLINE[kind]
    config = build(type(row.config), card.config, str(folder / "baseline.json"), "config")
    networks = row.build(checkpoint.model, config)
    try:
        networks.load_state_dict(load_file(weights_file(folder)))
    except (SafetensorError, RuntimeError) as error:
        first = " ".join(str(error).split())
        raise ValueError(f"{weights_file(folder)} does not fit its baseline.json ({first}): train it again") from error
    return networks.to(checkpoint.model.device).eval().requires_grad_(False), card


def searches(method: OfflineMethod) -> bool:
    """Whether a method asks its networks for a cost and a planner for the block, and not its networks for the block."""
    return isinstance(method, TDMPC2Method) and method.planner is not None


def offline_agent(checkpoint: Checkpoint, method: OfflineMethod, seed: int) -> Agent:
    """The agent of a method; raises like `load_offline`."""
    row, (networks, _) = OFFLINE[method.kind], load_offline(method.path, method.kind, checkpoint)
    if not searches(method):
        return OfflineAgent(checkpoint, networks, row.act, seed)
    assert row.plan is not None
    return row.plan(checkpoint, method, networks, seed)


class OfflineAgent(Agent):
    """Asks a trained baseline for every block where an agent would search; sees and encodes what an agent does."""

    def __init__(self, checkpoint: Checkpoint, networks: nn.Module, decide: Act, seed: int) -> None:
        uncomputed = CostConfig({"latent_l2": 1.0})
        super().__init__(checkpoint, Follow(1), uncomputed, seed=seed, graph=False, fast=False)
        self.networks, self.decide = networks, decide

    def _plan(self, situation: Situation, rows: np.ndarray, replan: int, starts: Sequence[WarmStart | None]) -> Plan:
        assert self.goal_BKD is not None
        action_BA = self.decide(self.networks, self.checkpoint, situation.latent_BTKD[:, -1], self.goal_BKD[rows])
        action_BHA = action_BA.clamp(self.box.low_A, self.box.high_A)[:, None]
        unknown_B1 = torch.full_like(action_BHA[:, :, 0], torch.nan)
        self._synchronise()
        return Plan(action_BHA, unknown_B1[:, 0], action_BHA, unknown_B1, torch.zeros_like(unknown_B1))
