"""stable-worldmodel's LeWM and CEM, asked from here: it runs in an interpreter of its own.

None of its dependencies is ever needed by lewm.
"""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORKER = Path(__file__).with_name("peer_worker.py")
INSTALL = "pip install stable-worldmodel==0.1.1 transformers"

ACTION_DIM, FRAME_SKIP = 2, 5
"""Raw action entries and environment steps per block, as on PushT and TwoRoom."""
HORIZON, CANDIDATES, ELITES = 5, 300, 30
"""The published search (LeWM, section 3.2)."""
PAPER: dict[str, Any] = {
    "_target_": "stable_worldmodel.wm.lewm.LeWM",
    "encoder": {
        "_target_": "stable_pretraining.backbone.utils.vit_hf",
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "patch_size": 14,
        "image_size": 224,
        "use_mask_token": False,
    },
    "predictor": {
        "num_frames": 3,
        "input_dim": 192,
        "hidden_dim": 192,
        "output_dim": 192,
        "depth": 6,
        "heads": 16,
        "dim_head": 64,
        "mlp_dim": 2048,
        "dropout": 0.1,
    },
    "action_encoder": {"input_dim": FRAME_SKIP * ACTION_DIM, "emb_dim": 192},
    "projector": {
        "input_dim": 192,
        "hidden_dim": 2048,
        "output_dim": 192,
        "norm_fn": {"_target_": "torch.nn.BatchNorm1d", "_partial_": True},
    },
    "pred_proj": {
        "input_dim": 192,
        "hidden_dim": 2048,
        "output_dim": 192,
        "norm_fn": {"_target_": "torch.nn.BatchNorm1d", "_partial_": True},
    },
}
"""config.json of LeWM at the size of the paper: 18 million parameters."""


AGREEMENT = 1e-3
"""Largest relative difference of what the two compute, with which they still count as one model."""


class PeerError(RuntimeError):
    """The peer cannot be started, or failed; the message says why in its words."""


@dataclass(frozen=True)
class PeerPlan:
    """The peer's answer for B problems, in its scaled actions."""

    ms: float
    """Wall time of its solve, latents to actions."""
    mean_BHA: Tensor
    """Final search mean: what it would execute."""
    candidates_BINHA: Tensor | None = None
    """Every candidate, where they were asked for."""
    costs_BIN: Tensor | None = None
    """Their costs."""


@dataclass(frozen=True)
class Size:
    """One search to compare."""

    batch: int
    iterations: int
    candidates: int = CANDIDATES
    elites: int = ELITES
    horizon: int = HORIZON

    def __post_init__(self) -> None:
        if min(self.batch, self.iterations, self.horizon) < 1:
            raise ValueError(f"{self}: batch, iterations and horizon must be at least 1")
        if not 2 <= self.elites <= self.candidates:
            raise ValueError(f"elites is {self.elites}; it must lie in 2..{self.candidates}, the candidates")


@dataclass(frozen=True)
class Decision:
    """What the peer's policy answers to one picture."""

    action_Ta: np.ndarray
    """Raw actions, one per environment step, until it would plan again; not clipped."""
    ms: float
    """Wall time in the peer's process, picture to first action."""
    encode_ms: float
    """Of it, encoding both pictures: it encodes the goal again in every plan."""


@dataclass(frozen=True)
class AgentSetup:
    """The peer's policy: its search, and how its model was shown pictures and actions in training."""

    candidates: int
    iterations: int
    elites: int
    horizon: int
    replan_every: int
    """Blocks executed per plan."""
    frame_skip: int
    action_mean: tuple[float, ...]
    """Of the raw actions (a,), and their std."""
    action_std: tuple[float, ...]
    pixel_scale: tuple[float, ...]
    """Of the three channels: the model sees uint8 * scale + shift."""
    pixel_shift: tuple[float, ...]


class Peer:
    """A running peer: `with Peer(python, threads=1) as peer: ...`. Raises PeerError when it cannot be started.

    option: what its interpreter is named with, for errors.
    """

    def __init__(self, python: Path, threads: int, device: str = "cpu", option: str = "--peer-python") -> None:
        self.python, self.threads, self.device, self.option = python, threads, device, option

    def __enter__(self) -> "Peer":
        self.scratch = tempfile.TemporaryDirectory(prefix="lewm-peer-")
        self.folder = Path(self.scratch.name)
        limits = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        try:
            with (self.folder / "errors").open("w") as errors:
                # Isolated, or the folder of the worker would come before the peer's own packages.
                self.process = subprocess.Popen(
                    [str(self.python), "-I", "-W", "ignore", str(WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=os.environ | limits,
                )
        except OSError as error:
            self.scratch.cleanup()
            raise PeerError(f"{self.python} cannot be started ({error}); pass the peer's with {self.option}") from error
        try:
            hello = self.ask("hello", threads=self.threads)
        except PeerError as error:
            self.close()
            raise PeerError(
                f"stable-worldmodel does not work in {self.python} ({error}); install it in an environment of its own "
                f"({INSTALL}) and name its interpreter with {self.option}"
            ) from error
        self.version: str = hello["version"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.process.kill()  # it may be in the middle of a long plan
        self.close()

    def close(self) -> None:
        """End the process and forget its files."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # of a request that it did not live to read
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.scratch.cleanup()

    def ask(self, command: str, **request: Any) -> dict[str, Any]:
        """One request of the worker. Raises PeerError with what it said went wrong."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"command": command} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = (self.folder / "errors").read_text().strip().splitlines()
            raise PeerError(f"it stopped: {said[-1] if said else 'without a word'}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(str(answer["error"]))
        return answer

    def make(self, config: dict[str, Any], seed: int, folder: Path) -> None:
        """Let the peer write a checkpoint with random weights into `folder`, and use it from now on."""
        folder.mkdir(parents=True, exist_ok=True)
        self.ask("make", config=config, seed=seed, folder=str(folder))
        self.load(folder)

    def load(self, folder: Path, device: str | None = None) -> None:
        """Use the checkpoint in `folder`, in the peer's layout, from now on; device: where, if not the peer's own."""
        self.ask("load", folder=str(folder), device=device or self.device)

    def begin(self, setup: AgentSetup, goal_BYXC: np.ndarray) -> None:
        """Start episodes towards goal pictures, uint8, each with a policy and a solver of its own."""
        tensors = self._tensors(goals=torch.from_numpy(goal_BYXC))
        self.ask("begin", tensors=tensors, device=self.device, **asdict(setup))

    def decide(self, problem: int, pixels_YXC: np.ndarray, seed: int) -> Decision:
        """Let the policy of one problem plan from a picture, uint8; its solver's generator starts at `seed`.

        With as many torch threads as this process has now.
        """
        tensors, threads = self._tensors(pixels=torch.from_numpy(pixels_YXC)), torch.get_num_threads()
        answer, found = self._fetch("decide", tensors=tensors, problem=problem, seed=seed, threads=threads)
        return Decision(found["action"].numpy(), answer["ms"], answer["encode_ms"])

    def answer(
        self, pixels_BTCYX: Tensor, action_BTA: Tensor, history: int = 1, double: bool = False
    ) -> dict[str, Tensor]:
        """Its `latent` (B, T, D) and `predicted` of normalised pixels, and its `rollout` (B, H, D) after `history`.

        The rollout has one frame per action from the last seen one on. Actions are scaled.
        """
        tensors = self._tensors(pixels=pixels_BTCYX, action=action_BTA)
        return self._fetch("answer", tensors=tensors, history=history, double=double)[1]

    def plan(
        self,
        latent_BD: Tensor,
        goal_BD: Tensor,
        size: Size,
        noise_BINHA: Tensor | None = None,
        seed: int = 0,
        record: bool = False,
    ) -> PeerPlan:
        """Its CEM from latents to a goal, all problems in one batch; with noise given, the solver's draws are that.

        record: also return every candidate and cost; the time then means nothing.
        """
        given = {"latent": latent_BD, "goal": goal_BD} | ({} if noise_BINHA is None else {"noise": noise_BINHA})
        answer, found = self._fetch(
            "plan",
            tensors=self._tensors(**given),
            candidates=size.candidates,
            iterations=size.iterations,
            elites=size.elites,
            horizon=size.horizon,
            action_dim=FRAME_SKIP * ACTION_DIM if noise_BINHA is None else noise_BINHA.shape[-1],
            device=self.device,
            seed=seed,
            record=record,
        )
        return PeerPlan(answer["ms"], found["mean"], found.get("candidates"), found.get("costs"))

    def _tensors(self, **tensors: Tensor) -> str:
        path = self.folder / "request.pt"
        torch.save({name: tensor.cpu() for name, tensor in tensors.items()}, path)
        return str(path)

    def _fetch(self, command: str, **request: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        out = self.folder / "answer.pt"
        answer = self.ask(command, out=str(out), **request)
        return answer, torch.load(out, weights_only=True)
