"""What runs inside the peer's interpreter: stable-worldmodel's own LeWM and CEM, asked over a pipe.

Needs torch, numpy, transformers, gymnasium, einops, loguru and stable-worldmodel, nothing of lewm; `lewm.peer`
starts it by its path. One JSON request per line comes in, one JSON answer goes out; tensors travel in files.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Request = dict[str, Any]


PACKAGES = ("stable_worldmodel", "stable_worldmodel.wm", "stable_worldmodel.solver")


def find_peer() -> None:
    """Make the peer's modules importable without the `__init__` files of `PACKAGES`.

    Those import every task, data format and renderer the peer has, for which its users install some forty packages. Its
    LeWM and its solver stand in files of their own, which are imported unchanged.
    """
    spec = importlib.util.find_spec(PACKAGES[0])
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {PACKAGES[0]!r}")
    folder = Path(spec.origin).parent.parent
    for name in PACKAGES:
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package


def build(config: dict[str, Any]) -> Any:
    """The peer's LeWM from its config.json, as its own loader builds it."""
    transformers = importlib.import_module("transformers")
    module = importlib.import_module("stable_worldmodel.wm.lewm.module")
    lewm = importlib.import_module("stable_worldmodel.wm.lewm")
    parts = {
        name: {k: v for k, v in section.items() if not k.startswith("_")}
        for name, section in config.items()
        if isinstance(section, dict)
    }
    encoder = parts["encoder"]
    vit = transformers.ViTConfig(
        hidden_size=encoder["hidden_size"],
        num_hidden_layers=encoder["num_hidden_layers"],
        num_attention_heads=encoder["num_attention_heads"],
        intermediate_size=encoder.get("intermediate_size", 4 * encoder["hidden_size"]),
        layer_norm_eps=encoder.get("layer_norm_eps", 1e-12),
        image_size=encoder["image_size"],
        patch_size=encoder["patch_size"],
    )
    projectors = {
        name: module.MLP(**(parts[name] | {"norm_fn": nn.BatchNorm1d})) for name in ("projector", "pred_proj")
    }
    model = lewm.LeWM(
        transformers.ViTModel(vit, add_pooling_layer=False, use_mask_token=False),
        module.Predictor(**parts["predictor"]),
        module.Embedder(**parts["action_encoder"]),
        **projectors,
    )
    return model.eval().requires_grad_(False)


def stir(model: nn.Module, seed: int) -> None:
    """Random weights under which everything matters: a fresh AdaLN block is the identity, a fresh BatchNorm too."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator).clamp(-3, 3)
            matrix = value.ndim > 1 and name.endswith("weight")
            scale = value[0].numel() ** -0.5 if matrix else 0.1
            centred = value.ndim == 1 and name.endswith(("weight", "running_var"))
            value.copy_(centred + scale * noise)


class Worker:
    """Holds the peer's model between requests."""

    def __init__(self) -> None:
        self.model: Any = None
        self.agents: list[Any] = []

    def hello(self, request: Request) -> Request:
        """Import the peer and say which one it is; `threads` limits its torch."""
        torch.set_num_threads(request["threads"])
        find_peer()
        importlib.import_module("stable_worldmodel.solver.cem")
        return {"version": importlib.metadata.version("stable-worldmodel"), "torch": torch.__version__}

    def make(self, request: Request) -> Request:
        """Write config.json and weights.pt of a model with random weights, as the peer's trainer would."""
        folder = Path(request["folder"])
        model = build(request["config"])
        stir(model, request["seed"])
        (folder / "config.json").write_text(json.dumps(request["config"], indent=2))
        torch.save(model.state_dict(), folder / "weights.pt")
        return {}

    def load(self, request: Request) -> Request:
        """Take up the model of a folder."""
        folder = Path(request["folder"])
        self.model = build(json.loads((folder / "config.json").read_text()))
        self.model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        self.model.to(request["device"])
        return {}

    def answer(self, request: Request) -> Request:
        """Embeddings of normalised pixels_BTCYX, one-step predictions and a rollout under scaled actions, by the model.

        The rollout sees the first `history` frames. In double precision the model's action encoder, which casts its
        input to float32, is given the same layers without the cast.
        """
        given = load_tensors(request)
        pixels, action = given["pixels"], given["action"]
        dtype = torch.float64 if request["double"] else torch.float32
        model = self.model.to(dtype)
        if request["double"]:
            model.action_encoder.forward = lambda x: embed_actions(model.action_encoder, x)
        info = model.encode({"pixels": pixels.to(dtype), "action": action.to(dtype)})
        frames = model.predictor.num_frames
        predicted = model.predict(info["emb"][:, :frames], info["act_emb"][:, :frames])
        history = request["history"]
        seen = {"pixels": pixels[:, None, :history].to(dtype)}
        rolled = model.rollout(seen, action[:, None].to(dtype))["predicted_emb"][:, 0, history:]
        torch.save({"latent": info["emb"], "predicted": predicted, "rollout": rolled}, request["out"])
        model.to(torch.float32)
        model.action_encoder.__dict__.pop("forward", None)
        return {}

    def plan(self, request: Request) -> Request:
        """Plan from latents to a goal with the peer's CEM; its milliseconds, final mean and every cost it saw.

        With `noise` (B, I, N, H, A) the solver's draws are replaced by it; without, the solver draws as it does.
        """
        given = load_tensors(request)
        latent, goal = given["latent"], given["goal"]
        batch, horizon = len(latent), request["horizon"]
        cem = importlib.import_module("stable_worldmodel.solver.cem")
        recorder = Recorder()
        solver = cem.CEMSolver(
            self.model,
            batch_size=batch,
            num_samples=request["candidates"],
            n_steps=request["iterations"],
            topk=request["elites"],
            device=request["device"],
            seed=request["seed"],
            callbacks=[recorder] if request["record"] else None,
        )
        gymnasium = importlib.import_module("gymnasium")
        space = gymnasium.spaces.Box(-1.0, 1.0, (batch, request["action_dim"]))
        solver.configure(action_space=space, n_envs=batch, config=SimpleNamespace(horizon=horizon, action_block=1))
        # Latents are given, so the solver's model never looks at these pictures.
        picture = torch.zeros(batch, 1, 3, 1, 1)
        info = {"pixels": picture, "goal": picture, "emb": latent[:, None, :], "goal_emb": goal[:, None, :]}
        started = clock(request["device"])
        with draws(given["noise"].unbind(1)) if "noise" in given else nullcontext():
            solution = solver.solve(info)
        ms = clock(request["device"]) - started
        torch.save({"mean": solution["actions"]} | recorder.tensors(), request["out"])
        return {"ms": ms}

    def begin(self, request: Request) -> Request:
        """Take up the goals (B, Y, X, C), uint8: from now on there is an agent of the peer's for each of them."""
        goals = load_tensors(request)["goals"].numpy()
        self.agents = [make_agent(self.model, goal, request) for goal in goals]
        return {}

    def decide(self, request: Request) -> Request:
        """Let one problem's agent plan from its picture (Y, X, C), uint8, with a generator of this `seed`.

        Gives the raw actions (T, a) up to its next plan; `ms` from picture to first action and `encode_ms` of it.
        """
        torch.set_num_threads(request["threads"])
        agent, solver = self.agents[request["problem"]], self.agents[request["problem"]].solver
        solver.torch_gen.manual_seed(request["seed"])
        info = {
            "pixels": load_tensors(request)["pixels"].numpy()[None, None],
            "goal": agent.goal,
            "action": np.zeros((1, 1, *agent.env.single_action_space.shape)),  # asked for, and not looked at
        }
        with stopwatch(self.model, solver.device) as encoding:
            started = clock(solver.device)
            actions = [agent.get_action(info)]
            ms = clock(solver.device) - started
        # It acts from its buffer, as in an episode of its own, until the step at which it would plan again.
        actions += [agent.get_action(info) for _ in range(agent.flatten_receding_horizon - 1)]
        torch.save({"action": torch.from_numpy(np.concatenate(actions))}, request["out"])
        return {"ms": ms, "encode_ms": sum(encoding)}


class Recorder:
    """A callback of the solver that keeps all candidates and costs."""

    output_key = "recorded"

    def __init__(self) -> None:
        self.history: list[Any] = []
        self.candidates: list[Tensor] = []
        self.costs: list[Tensor] = []

    def reset(self) -> None:
        """Called before a solve."""

    def start_batch(self) -> None:
        """Called before the problems of one batch."""

    def end_solve(self) -> None:
        """Called after a solve."""

    def __call__(self, **state: Any) -> None:
        """Called after every iteration."""
        self.candidates.append(state["candidates"].cpu().clone())
        self.costs.append(state["costs"].cpu().clone())

    def tensors(self) -> dict[str, Tensor]:
        """What was kept, one entry per iteration along axis 1."""
        if not self.costs:
            return {}
        return {"candidates": torch.stack(self.candidates, 1), "costs": torch.stack(self.costs, 1)}


class Standardised:
    """What the peer's policy calls a process: actions as it plans them, and back; statistics of raw actions (a,)."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)

    def transform(self, action: NDArray[Any]) -> NDArray[Any]:
        """Raw to zero mean and unit variance."""
        scaled: NDArray[Any] = (action - self.mean) / self.std
        return scaled

    def inverse_transform(self, action: NDArray[Any]) -> NDArray[Any]:
        """And back."""
        raw: NDArray[Any] = action * self.std + self.mean
        return raw


def make_agent(model: Any, goal: NDArray[Any], request: Request) -> Any:
    """The peer's WorldModelPolicy and CEMSolver for one problem, set up as its planning script does.

    A solver's generator serves all its problems in turn, so each problem gets a policy and a solver of its own.
    """
    module, cem = import_policy(), importlib.import_module("stable_worldmodel.solver.cem")
    gymnasium = importlib.import_module("gymnasium")
    scale, shift = (torch.tensor(request[name]).view(-1, 1, 1) for name in ("pixel_scale", "pixel_shift"))

    def normalise(picture: Tensor) -> Tensor:
        """What training did to a picture (C, Y, X)."""
        return picture * scale + shift

    agent = module.WorldModelPolicy(
        cem.CEMSolver(
            model,
            num_samples=request["candidates"],
            n_steps=request["iterations"],
            topk=request["elites"],
            device=request["device"],
        ),
        module.PlanConfig(
            horizon=request["horizon"], receding_horizon=request["replan_every"], action_block=request["frame_skip"]
        ),
        process={"action": Standardised(request["action_mean"], request["action_std"])},
        transform={"pixels": normalise, "goal": normalise},
    )
    space = gymnasium.spaces.Box(-1.0, 1.0, (1, len(request["action_mean"])))
    one = gymnasium.spaces.Box(-1.0, 1.0, space.shape[1:])
    agent.set_env(SimpleNamespace(num_envs=1, action_space=space, single_action_space=one))
    agent.goal = goal[None, None]
    return agent


def import_policy() -> Any:
    """The peer's module of policies.

    It imports torchvision for the class that marks a tensor as a picture, for torchvision's own transforms; none is
    used here, and torchvision's wheels do not load beside a CPU build of torch, so a function stands in for it.
    """
    name = "stable_worldmodel.policy"
    if name not in sys.modules:
        solver = importlib.import_module("stable_worldmodel.solver.solver")
        vars(sys.modules["stable_worldmodel.solver"])["Solver"] = solver.Solver
        vision, before = ModuleType("torchvision"), sys.modules.get("torchvision")
        vars(vision)["tv_tensors"] = SimpleNamespace(Image=torch.as_tensor)
        sys.modules["torchvision"] = vision
        try:
            importlib.import_module(name)
        finally:
            del sys.modules["torchvision"]
            if before is not None:
                sys.modules["torchvision"] = before
    return sys.modules[name]


@contextmanager
def stopwatch(model: Any, device: str) -> Iterator[list[float]]:
    """Milliseconds of every call of the model's encoder meanwhile."""
    spent: list[float] = []
    encode = model.encode

    def timed(info: dict[str, Any]) -> Any:
        started = clock(device)
        encoded = encode(info)
        spent.append(clock(device) - started)
        return encoded

    model.encode = timed
    try:
        yield spent
    finally:
        del model.encode


def clock(device: str) -> float:
    """Milliseconds on the clock, once the device is done."""
    synchronize(device)
    return 1000 * time.perf_counter()


def embed_actions(embedder: Any, action_BTA: Tensor) -> Tensor:
    """The peer's action encoder without its cast to float32."""
    smooth = embedder.patch_embed(action_BTA.transpose(1, 2)).transpose(1, 2)
    embedded: Tensor = embedder.embed(smooth)
    return embedded


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@contextmanager
def draws(noise: tuple[Tensor, ...]) -> Iterator[None]:
    """Hand out given noise wherever torch.randn is asked for more."""
    left = list(noise)
    original = torch.randn

    def given(*shape: int, device: Any, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        drawn = left.pop(0)
        if tuple(drawn.shape) != shape:
            raise ValueError(f"the solver asked for noise of shape {shape}; it was given {tuple(drawn.shape)}")
        return drawn.to(device, dtype)

    torch.randn = given  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn = original


def load_tensors(request: Request) -> dict[str, Tensor]:
    """The tensors that came with a request."""
    tensors: dict[str, Tensor] = torch.load(request["tensors"], weights_only=True)
    return tensors


def main() -> None:
    """Answer requests until the pipe closes; what the peer prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        command: Callable[[Request], Request] = getattr(worker, request["command"])
        try:
            answer = command(request)
        except Exception as error:  # it goes back as a sentence, and the parent decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
