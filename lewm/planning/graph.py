"""A whole plan as one CUDA graph: every iteration and every imagined step behind a single launch.

The eager loop launches thousands of small kernels from Python and waits for Python, not for the GPU; a replayed graph
does not. The price is fixed shapes: there is one graph per shape, and batches are padded to a power of two.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lewm.planning.costs import Situation
from planners import ActionBox, CostFn, Plan, Planner, WarmStart

MakeCost = Callable[[Situation, Tensor], CostFn]
"""(situation, goal_BKD) -> the cost of a plan; it is called inside the graph, on the graph's own buffers."""

R = TypeVar("R", Plan, Situation, WarmStart)


def each_tensor(record: R, function: Callable[[Tensor], Tensor]) -> R:
    """The record with `function` applied to every tensor in it."""
    changed = {f.name: function(x) for f in fields(record) if isinstance(x := getattr(record, f.name), Tensor)}
    return replace(record, **changed)


@dataclass(frozen=True)
class Captured:
    """A plan that can be made again and again on the same memory."""

    plan: Plan
    """Where every replay leaves its results."""
    replay: Callable[[], None]
    """Plan anew from what the input buffers hold now; keeps the graph alive."""


class Capture(Protocol):
    """Turns a function without arguments, host syncs or data-dependent shapes into something that replays."""

    def __call__(self, function: Callable[[], Plan]) -> Captured:
        """Record one run of `function`."""
        ...


class CudaCapture:
    """Records on CUDA. All graphs share one memory pool: they never run at once and read nothing of each other."""

    warmup = 3
    """Runs before the recording: they fill the workspaces of the libraries and the allocator's pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Plan]) -> Captured:
        """Warm up on a side stream, then record; other threads may go on using CUDA meanwhile."""
        with torch.cuda.device(self.device):
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(self.warmup):
                    function()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                plan = function()
        return Captured(plan, graph.replay)


class Rerun:
    """Keeps the function and runs it again at every replay: what a capture means, on any device."""

    def __call__(self, function: Callable[[], Plan]) -> Captured:
        """Run once for the buffers; a replay fills the same ones."""
        kept = each_tensor(function(), torch.clone)

        def replay() -> None:
            fresh = function()
            for field in fields(kept):
                if isinstance(buffer := getattr(kept, field.name), Tensor):
                    buffer.copy_(getattr(fresh, field.name))

        return Captured(kept, replay)


def padded_size(problems: int) -> int:
    """The next power of two: few different shapes, and at most half of the work in vain."""
    return 1 << (problems - 1).bit_length()


@dataclass(frozen=True)
class _Graph:
    """A captured plan, the buffers it reads, and the function that made it: whatever it touches has to live on."""

    buffers: dict[str, Tensor]
    captured: Captured
    function: Callable[[], Plan]


class PlanGraphs:
    """A planner with its cost, called like a function: looks up the graph of the shape at hand, or captures it.

    A plan is that of `planner.plan` to fp32 rounding and owns its memory. Graphs are kept by the shapes and dtypes of
    all inputs (padded batch, frames seen, kind of warm start); beyond `limit` the one unused for longest goes.
    """

    def __init__(
        self, planner: Planner, make_cost: MakeCost, box: ActionBox, capture: Capture, limit: int = 16
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}; at least 1 graph has to be kept")
        self.planner, self.make_cost, self.box, self.capture, self.limit = planner, make_cost, box, capture, limit
        self.graphs: OrderedDict[tuple[object, ...], _Graph] = OrderedDict()

    @torch.no_grad()
    def __call__(
        self, situation: Situation, goal_BKD: Tensor, noise_BINHA: Tensor, start: WarmStart | None = None
    ) -> Plan:
        """The plan for B problems; see `planners.Planner.plan` for noise and start."""
        inputs = _named(situation, goal_BKD, noise_BINHA, start)
        problems = len(noise_BINHA)
        size = padded_size(problems)
        key = (size, *((name, tuple(x.shape[1:]), x.dtype, x.device) for name, x in inputs.items()))
        if key in self.graphs:
            self.graphs.move_to_end(key)
            _fill(self.graphs[key].buffers, inputs)
        else:
            if len(self.graphs) == self.limit:
                self.graphs.popitem(last=False)
            self.graphs[key] = self._record(inputs, size)
        graph = self.graphs[key]
        graph.captured.replay()
        return each_tensor(graph.captured.plan, lambda x: x[:problems].clone())

    def _record(self, inputs: dict[str, Tensor], size: int) -> _Graph:
        buffers = {name: x.new_empty(size, *x.shape[1:]) for name, x in inputs.items()}
        _fill(buffers, inputs)

        def function() -> Plan:
            return self._plan(buffers)

        return _Graph(buffers, self.capture(function), function)

    def _plan(self, x: dict[str, Tensor]) -> Plan:
        start = WarmStart(x["mean"], x.get("std"), x.get("seeds")) if "mean" in x else None
        cost_fn = self.make_cost(Situation(x["latent"], x["past"], x.get("chance"), x.get("measured")), x["goal"])
        return self.planner.plan(cost_fn, x["noise"], self.box, start)


def _named(situation: Situation, goal_BKD: Tensor, noise_BINHA: Tensor, start: WarmStart | None) -> dict[str, Tensor]:
    """Every tensor a plan depends on, problems first."""
    inputs: dict[str, Tensor | None] = {
        "latent": situation.latent_BTKD,
        "past": situation.past_BTA,
        "chance": situation.chance_BMHV,
        "measured": situation.goal_measured_BM,
        "goal": goal_BKD,
        "noise": noise_BINHA,
    }
    if start is not None:
        inputs |= {"mean": start.mean_BHA, "std": start.std_BHA, "seeds": start.seeds_BSHA}
    return {name: x for name, x in inputs.items() if x is not None}


def _fill(buffers: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    """Copy the problems in; the rows of padding repeat the first, so that nothing in them can go wrong on its own."""
    for name, x in inputs.items():
        buffers[name][: len(x)] = x
        buffers[name][len(x) :] = x[:1]


def plan_graphs(
    planner: Planner, make_cost: MakeCost, box: ActionBox, device: torch.device, graph: bool | None
) -> PlanGraphs | None:
    """The graphs an agent plans with; None where it plans eagerly.

    graph: None takes graphs where they work: on CUDA, with a planner that needs no gradient. Planners with the need
    `gradient` run eagerly: their backward pass runs on threads of autograd's own, and recording those has not been
    shown to give the eager plan on a GPU. Raises ValueError for graph = True where graphs do not work.
    """
    if graph is False:
        return None
    reason = None
    if device.type != "cuda":
        reason = f"the model is on {device}, and graphs are CUDA's"
    elif "gradient" in planner.needs:
        reason = f"{type(planner).__name__} differentiates its cost, which is not captured"
    if reason is None:
        return PlanGraphs(planner, make_cost, box, CudaCapture(device))
    if graph:
        raise ValueError(f"graph is True, but {reason}; leave graph out to plan eagerly")
    return None
