"""The goals of a manifest shared among processes, each with a policy of its own. Who runs a goal changes no outcome."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lewm.checkpoint import Checkpoint, load
from lewm.evaluate.manifest import Manifest
from lewm.evaluate.methods import LearnedConfig, MethodConfig, make_policy
from lewm.evaluate.runner import Outcome, Run, run_batch
from lewm.planning.policy import Policy
from lewm.processes import Processes


@dataclass(frozen=True)
class Actor:
    """How another process makes the same policy."""

    method: MethodConfig
    checkpoint: str | None
    """Folder of it; None for methods that use none."""
    device: str
    seed: int
    threads: int
    """Torch threads of the process."""


def shared_by(
    processes: Processes, method: MethodConfig, checkpoint: Checkpoint | None, seed: int, manifest: Manifest
) -> Run | None:
    """How processes run the problems of a manifest; None where there is only this one.

    They share the torch threads of this one.
    """
    if processes.count == 1:
        return None
    threads = max(1, torch.get_num_threads() // processes.count)
    who = Actor(method, None, "cpu", seed, threads)
    if checkpoint is not None and isinstance(method, LearnedConfig):
        who = replace(who, checkpoint=str(checkpoint.path), device=str(checkpoint.model.device))
    died = (
        f"a process that evaluated {method.name} died (killed, or out of memory): run the same command again, it goes "
        "on with the missing goals; evaluate.processes says how many run side by side"
    )

    def run(todo: Sequence[int], batch: int) -> Iterator[list[Outcome]]:
        size = min(batch, -(-len(todo) // processes.count)) or 1  # or some would have nothing to do
        parts = [todo[first : first + size] for first in range(0, len(todo), size)]
        return processes.run(_run_batch, [(who, manifest, part) for part in parts], died)

    return run


_ready: tuple[Actor, Policy] | None = None
"""The last policy this process made: it is asked for many batches of one method in a row."""


def _run_batch(who: Actor, manifest: Manifest, batch: Sequence[int]) -> list[Outcome]:
    global _ready
    if _ready is None or _ready[0] != who:
        torch.set_num_threads(who.threads)
        checkpoint = None if who.checkpoint is None else load(who.checkpoint, who.device)
        _ready = who, make_policy(who.method, checkpoint, who.seed)
    return run_batch(_ready[1], manifest, batch)
