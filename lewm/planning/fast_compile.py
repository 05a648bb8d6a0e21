"""The fast rollout through torch.compile: on a CPU, where planning goes on long enough to pay for a minute or two."""

import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lewm.planning.fast_loop import Rollout
from lewm.planning.fast_rollout import FastMLP, FastModel, FastRollout
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class CompiledRollout:
    """A rollout that runs compiled where the shapes, the threads and the need for gradients are those compiled for.

    Everywhere else it runs as it was: nothing is ever compiled in the middle of a plan.
    """

    eager: FastRollout
    backend: str

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """See `FastRollout`."""
        compiled = self.compile(latent_BTKD, past_BTA)

        def rollout(action_BNHA: Tensor) -> list[Tensor]:
            with torch.compiler.set_stance("eager_on_recompile"):
                return compiled(action_BNHA)

        return rollout

    def compile(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """A rollout whose first call compiles, unless one of the same shapes has."""
        rollout: Rollout = torch.compile(self.eager.begin(latent_BTKD, past_BTA), dynamic=False, backend=self.backend)
        return rollout


@torch.no_grad()
def compile_rollout(
    fast: FastModel, model: WorldModel, candidates: int, horizon: int, seen: int = 1, backend: str = "inductor"
) -> FastModel:
    """Compile the rollout of one problem with these candidates, horizon and frames seen, on as many threads as now.

    Says on standard error that it compiles and how long it took. Where that fails, as without a C++ compiler, it says
    so in one line and returns `fast`. Raises ValueError off the CPU: on CUDA a plan is one graph, see `plan_graphs`.
    """
    if model.device.type != "cpu":
        raise ValueError(
            f"compile: the model is on {model.device}; only rollouts on the CPU are compiled: leave it out"
        )
    if isinstance(fast.rollout, FastMLP):
        print("compile: an mlp predictor plans faster as it is; left alone", file=sys.stderr)
        return fast
    rollout = fast.rollout.eager if isinstance(fast.rollout, CompiledRollout) else fast.rollout
    compiled = CompiledRollout(rollout, backend)
    like = model.action_mean_A
    latent_BTKD = like.new_zeros(1, seen, model.tokens, model.latent_dim)
    past_BTA, action_BNHA = like.new_zeros(1, seen - 1, model.action_dim), like.new_zeros(1, candidates, horizon, 1)
    print(
        f"compiling the rollout of {candidates} candidates x {horizon} blocks, once",
        end=" ",
        file=sys.stderr,
        flush=True,
    )
    start = time.perf_counter()
    try:
        compiled.compile(latent_BTKD, past_BTA)(action_BNHA.repeat(1, 1, 1, model.action_dim))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        print(f"failed, planning goes on without it: {type(error).__name__}: {reason}", file=sys.stderr)
        return fast
    print(f"took {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return replace(fast, rollout=compiled)
