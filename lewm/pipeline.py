"""The story in order: record, train, fit the heads, evaluate, report. Each stage reads what the last one saved.

Every function may be called again after a kill: finished work is found and kept.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lewm import __version__, distributed
from lewm.checkpoint import Checkpoint, Origin, load, save_checkpoint, split_of
from lewm.config import RunConfig, dump
from lewm.cost_to_go import CostToGoConfig, train_cost_to_go
from lewm.data.collect import collect, git_revision
from lewm.data.store import Store, split_episodes
from lewm.evaluate.evaluate import Evaluated, evaluate, held_out_manifests
from lewm.evaluate.fingerprint import keep_manifest
from lewm.evaluate.logged import Setup, save_setup
from lewm.evaluate.manifest import Manifest
from lewm.evaluate.results import save_results
from lewm.evaluate.timing import keep_time
from lewm.progress import Stage
from lewm.proposal import ProposalConfig, train_proposal
from lewm.readout import fit_readout
from lewm.train import train


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises ValueError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no CUDA device here; use --device cpu, or see `lewm doctor`")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is unknown to torch; use auto, cpu, cuda or cuda:0") from error


def save_run(run: RunConfig, out: Path) -> None:
    """Keep the resolved configuration, the command and the code's revision beside what they made."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(dump(run))
    facts = {"command": [Path(sys.argv[0]).name, *sys.argv[1:]], "git": git_revision(), "lewm": __version__}
    (out / "run.json").write_text(json.dumps(facts | {"torch": torch.__version__}, indent=1) + "\n")


def record(run: RunConfig, out: Path, processes: int, quiet: bool = False) -> Store:
    """Record the rollouts of a run into `out`."""
    with Stage("record", run.collect.episodes, "episodes", quiet) as stage:

        def report(done: int, total: int) -> None:
            stage.update(done - stage.done)

        return collect(run.collect, run.task, run.settings, out, processes, report)


def fit(run: RunConfig, store: Store, out: Path, device: torch.device, quiet: bool = False) -> Path:
    """Train the world model, then its cost-to-go and proposal; returns the checkpoint folder `out/checkpoint`.

    What that takes is kept in `out/spent.json` as stage `train`, see `keep_time`.
    """
    if distributed.rank() > 0:
        return _fit(run, store, out, device, quiet)
    if not (out / "train" / "trainer.pt").exists():  # else it may still be refused, and what is saved has to stay
        save_run(run, out)
    with keep_time(out, "train"):
        path = _fit(run, store, out, device, quiet)
    save_run(run, out)
    return path


def _fit(run: RunConfig, store: Store, out: Path, device: torch.device, quiet: bool) -> Path:
    model = train(run.model, run.objective, run.train, store, out / "train", device, quiet)
    path = out / "checkpoint"
    if distributed.rank() > 0:
        return path
    head, proposal, readout = None, None, None
    held_out, seed = run.train.held_out, run.train.seed
    model.requires_grad_(False)
    if run.cost_to_go.steps > 0:
        head = train_cost_to_go(model, run.cost_to_go, store, out / "train", held_out, seed, quiet)
    if run.proposal.steps > 0:
        proposal = train_proposal(model, run.proposal, store, out / "train", held_out, seed, quiet)
    seen, _ = split_episodes(store.num_episodes, held_out, seed)
    training: dict[str, Any] = {"objective": asdict(run.objective), "train": asdict(run.train), "git": git_revision()}
    training["frames"] = store.frames_in(seen)
    if run.readout.entries:
        readout, training["readout_r2"] = fit_readout(model, run.readout, store, held_out, seed)
    save_checkpoint(path, model, head, origin(run, store), training, proposal=proposal, readout=readout)
    return path


def origin(run: RunConfig, store: Store) -> Origin:
    """What the checkpoint remembers of its recordings."""
    meta = store.meta
    return Origin(
        task=meta.task,
        settings=dict(meta.settings),
        renderer_fingerprint=meta.provenance.renderer,
        state_names=tuple(meta.state_names),
        angle_names=tuple(meta.angle_names),
        control_dt=meta.control_dt,
        held_out=run.train.held_out,
        seed=run.train.seed,
        episodes=store.num_episodes,
    )


def refit_cost_to_go(path: Path, config: CostToGoConfig, store: Store, out: Path, device: str) -> Path:
    """Give a trained checkpoint a (new) cost-to-go head; writes `out/checkpoint`. Raises ValueError for no steps."""
    checkpoint = _to_refit("cost_to_go", config.steps, path, store, device)
    origin = checkpoint.origin
    head = train_cost_to_go(checkpoint.model, config, store, out / "train", origin.held_out, origin.seed)
    return _save_refitted(replace(checkpoint, cost_to_go=head), {"cost_to_go": asdict(config)}, out)


def refit_proposal(path: Path, config: ProposalConfig, store: Store, out: Path, device: str) -> Path:
    """Give a trained checkpoint a (new) proposal; writes `out/checkpoint`. Raises ValueError for no steps."""
    checkpoint = _to_refit("proposal", config.steps, path, store, device)
    origin = checkpoint.origin
    proposal = train_proposal(checkpoint.model, config, store, out / "train", origin.held_out, origin.seed)
    return _save_refitted(replace(checkpoint, proposal=proposal), {"proposal": asdict(config)}, out)


def _to_refit(head: str, steps: int, path: Path, store: Store, device: str) -> Checkpoint:
    """The checkpoint, once it is known that there is something to fit, on the recordings it was trained on."""
    if steps == 0:
        raise ValueError(f"{head}.steps is 0, which fits none: add --{head}.steps 4000")
    checkpoint = load(path, device)
    split_of(checkpoint, store)
    return checkpoint


def _save_refitted(checkpoint: Checkpoint, settings: dict[str, Any], out: Path) -> Path:
    """Write a checkpoint with one new head and that head's settings; its other heads stay."""
    training = json.loads((checkpoint.path / "config.json").read_text())["training"] | settings
    save_checkpoint(
        out / "checkpoint",
        checkpoint.model,
        checkpoint.cost_to_go,
        checkpoint.origin,
        training,
        proposal=checkpoint.proposal,
        readout=checkpoint.readout,
    )
    return out / "checkpoint"


def measure(run: RunConfig, checkpoint: Checkpoint, store: Store, out: Path, quiet: bool = False) -> list[Evaluated]:
    """Evaluate on held-out goals; manifests, outcomes and `results.json` go to `out`."""
    manifests = held_out_manifests(run.evaluate, store, checkpoint, out / "evaluation")
    return measure_manifests(run, checkpoint, manifests, out, quiet)


def measure_manifests(
    run: RunConfig, checkpoint: Checkpoint, manifests: Sequence[Manifest], out: Path, quiet: bool = False
) -> list[Evaluated]:
    """Evaluate on given manifests; outcomes and `results.json` go to `out`.

    Raises ValueError where `out` holds results of another manifest of the same name.
    """
    folder = out / "evaluation"
    for manifest in manifests:
        keep_manifest(manifest, folder / f"manifest_{manifest.goals.name}.json")
    evaluated = evaluate(run.evaluate, manifests, checkpoint, folder, quiet)
    save_run(run, folder)
    methods = {e.method.name: e.method for e in evaluated}
    save_setup(Setup(str(checkpoint.path.resolve()), run.evaluate.seed, tuple(methods.values())), out)
    save_results([e.row for e in evaluated], out / "results.json")
    return evaluated
