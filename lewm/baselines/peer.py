"""stable-worldmodel's LeWM and CEM in its own code, on the goals of an evaluation: the same weights, two planners.

Theirs, unchanged, in a process of its own: the LeWM module, CEMSolver and WorldModelPolicy, which decides when to plan,
what of a plan is executed and what the next one starts from. Ours: the weights in its layout, pictures at the size and
with the statistics the model was trained on, a seed for every plan, and clipping its actions to what the task takes.

Its solver draws for all problems of a batch from one generator, so that neighbours change an outcome. Here each problem
has a policy and a solver of its own, seeded by (seed, problem, decision). Milliseconds per plan are those of the peer's
process, picture to first action; what asking it over the pipe costs is left out.
"""

import sys
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch

from lewm.checkpoint import load
from lewm.export_model import export_model
from lewm.peer import AGREEMENT, AgentSetup, Peer, PeerError
from lewm.planning.policy import PlanClock, Start, plays
from lewm.world_model import WorldModel
from planners.noise import key_seed


@dataclass(frozen=True)
class PeerMethod:
    """stable-worldmodel's LeWM and CEM, by its own code, with the weights of a checkpoint of ours."""

    path: str
    """Checkpoint folder of a LeWM, encoder vit and predictor adaln: of `lewm train`, or `lewm import-model`."""
    name: str = "peer"
    """Name in tables."""
    kind: Literal["peer"] = "peer"
    """Which kind of method this is."""
    python: str | None = None
    """Interpreter that has stable-worldmodel (pip install stable-worldmodel==0.1.1 transformers); null: this one."""
    device: str = "cpu"
    """Where it computes: cpu, cuda, cuda:1."""
    candidates: int = 300
    """Action sequences scored per iteration."""
    iterations: int = 30
    """Rounds of draw, score, refit."""
    elites: int = 30
    """Cheapest candidates that the next mean and std are fitted to."""
    horizon: int = 5
    """Blocks planned ahead."""
    replan_every: int = 5
    """Blocks executed before planning again; the horizon means open loop."""

    def __post_init__(self) -> None:
        for name in ("iterations", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"method {self.name}: {name} is {getattr(self, name)}; it must be at least 1")
        if not 2 <= self.elites <= self.candidates:
            raise ValueError(
                f"method {self.name}: elites is {self.elites}; it must lie in 2..{self.candidates}, the candidates"
            )
        if not 1 <= self.replan_every <= self.horizon:
            raise ValueError(
                f"method {self.name}: replan_every is {self.replan_every}; it must lie in 1..{self.horizon}, the "
                "horizon"
            )

    @property
    def files(self) -> list[Path]:
        """What its outcomes depend on."""
        return [Path(self.path) / "model.safetensors", Path(self.path) / "config.json"]


class PeerPolicy:
    """Asks the peer's policy whenever it plans, one problem at a time, and executes what it answers.

    Raises PeerError where the peer does not work, and ValueError for a checkpoint that is no LeWM.
    """

    def __init__(self, config: PeerMethod, seed: int) -> None:
        checkpoint = load(config.path)
        self.config, self.seed, self.origin = config, seed, checkpoint.origin
        self.setup = agent_setup(config, checkpoint.model)
        self.frame_shape = (checkpoint.model.facts.size, checkpoint.model.facts.size, 3)
        self.step = 0
        self.clock = PlanClock(encode_ms=0.0)
        where, python = f"method {config.name}: {config.path}", Path(config.python or sys.executable).expanduser()
        with TemporaryDirectory(prefix="lewm-peer-") as folder, ExitStack() as stack:
            export_model(checkpoint.model, where, Path(folder))
            peer = Peer(python, torch.get_num_threads(), config.device, f"`python` of method {config.name}")
            self.peer = stack.enter_context(peer)
            hand_over(self.peer, checkpoint.model, Path(folder), where)
            weakref.finalize(self, stack.pop_all().close)

    @property
    def needs_frame(self) -> bool:
        """Whether the next `act` plans."""
        return self.step % self._steps == 0

    def start(self, starts: Sequence[Start]) -> None:
        """Show the peer the goals. Raises ValueError for a task or pictures that the model was not trained on."""
        self._check(starts[0])
        self.indices = [start.index for start in starts]
        space = starts[0].task.action_space
        self.low, self.high = space.low, space.high
        self.queue = np.zeros((len(starts), self._steps, *space.shape), np.float32)
        self.step = 0
        self.peer.begin(self.setup, np.stack([start.task.goal_image(start.goal_state) for start in starts]))

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """The next action of every problem's current plan."""
        if self.needs_frame:
            assert pixels is not None
            for row in np.flatnonzero(active):
                seed = key_seed((self.seed, self.indices[row], self.step // self._steps))
                decision = self.peer.decide(int(row), pixels[row], seed)
                self.clock = PlanClock(decision.encode_ms, decision.ms)  # of its process: asking it does not count
                self.queue[row] = decision.action_Ta.clip(self.low, self.high)
        self.step += 1
        return np.where(active[:, None], self.queue[:, (self.step - 1) % self._steps], 0)

    @property
    def _steps(self) -> int:
        """Environment steps per plan."""
        return self.setup.frame_skip * self.setup.replan_every

    def _check(self, start: Start) -> None:
        where, origin = f"method {self.config.name}: {self.config.path}", self.origin
        if not plays(start.task, origin.task, origin.settings):
            raise ValueError(f"{where} was trained on {origin.task}, and these goals are of another task")
        if start.task.observation_space.shape != self.frame_shape:
            raise ValueError(
                f"{where} was trained on pictures of shape {self.frame_shape}, and these are "
                f"{start.task.observation_space.shape}: evaluate it on goals of its own task settings, or train it on "
                "these"
            )


def agent_setup(config: PeerMethod, model: WorldModel) -> AgentSetup:
    """The peer's policy for a model of ours."""
    entries = model.facts.action_dim
    return AgentSetup(
        candidates=config.candidates,
        iterations=config.iterations,
        elites=config.elites,
        horizon=config.horizon,
        replan_every=config.replan_every,
        frame_skip=model.config.frame_skip,
        action_mean=tuple(model.action_mean_A[:entries].tolist()),
        action_std=tuple(model.action_std_A[:entries].tolist()),
        pixel_scale=tuple(model.pixel_scale.flatten().tolist()),
        pixel_shift=tuple(model.pixel_shift.flatten().tolist()),
    )


@torch.no_grad()
def hand_over(peer: Peer, model: WorldModel, folder: Path, where: str) -> None:
    """Let the peer load the folder that a model was exported to, and see that it answers as ours does.

    Raises PeerError, with `where` in it, where the answers differ.
    """
    peer.load(folder, "cpu")
    generator, facts = torch.Generator().manual_seed(0), model.facts
    shape = (1, model.context, 3, facts.size, facts.size)
    frames_BTCYX = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    scaled_BTA = torch.randn(1, model.context + 1, model.action_dim, generator=generator)
    raw_BTA = scaled_BTA * model.action_std_A + model.action_mean_A
    latent_BTKD = model.encode(frames_BTCYX)
    rolled_BHD = model.rollout(latent_BTKD[:, :1], raw_BTA[:, :0], raw_BTA[:, None])[:, 0, :, 0]
    pixels_BTCYX = torch.addcmul(model.pixel_shift, frames_BTCYX.float(), model.pixel_scale)
    theirs = peer.answer(pixels_BTCYX, scaled_BTA)
    for name, ours in (("latent", latent_BTKD[:, :, 0]), ("rollout", rolled_BHD)):
        difference = float((ours - theirs[name]).abs().max() / ours.abs().max())
        if not difference <= AGREEMENT:
            raise PeerError(
                f"{where}: stable-worldmodel {peer.version} and lewm differ in the {name} of the same pictures by "
                f"{difference:.1e}, more than {AGREEMENT:g} of its largest entry: they are not the same model"
            )
    peer.load(folder)
