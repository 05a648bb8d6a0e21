"""`lewm compare baselines`: planners on one world model, and everything that goals are reached by without it.

Every row is trained once per seed, by the code of `lewm train` and `lewm train-baseline`, and evaluated on the same
frozen manifests. Resumable: what either command finished in the folder is found, whoever called it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lewm import config, pipeline
from lewm.baselines import Sb3Method
from lewm.baselines.offline import OFFLINE, Card
from lewm.baselines.offline import read_card as offline_card
from lewm.baselines.peer import PeerMethod
from lewm.baselines.trainers import TRAINERS, Job, settings
from lewm.checkpoint import Checkpoint, load
from lewm.compare.baseline_rows import BaselineRow, BaselinesConfig, load_manifests
from lewm.compare.baselines_table import table
from lewm.compare.shared import leaves, pick_rows, refuse_others, words
from lewm.config import RunConfig, with_seed
from lewm.evaluate.evaluate import EvaluateConfig, acts_on, applicable, outcome_key, run_method
from lewm.evaluate.fingerprint import keep_manifest
from lewm.evaluate.logged import Setup, load_setup, save_setup
from lewm.evaluate.manifest import Manifest
from lewm.evaluate.methods import LearnedConfig, MethodConfig, make_policy, within_budget
from lewm.evaluate.results import ResultRow, save_results
from lewm.processes import Processes
from lewm.sb3.config import UNBOUND, Sb3Card, Sb3Config
from lewm.sb3.config import read_card as sb3_card
from lewm.schema import build, read_json, write_json

STAGES = ("train", "evaluate")
"""What is done to a row."""


@dataclass(frozen=True)
class Entry:
    """One row with one training seed: where it lies, and how it is made and acts."""

    row: BaselineRow
    seed: int
    run: RunConfig
    """Of the world model it acts with, with its seed."""
    home: Path
    """Folder of that world model."""
    folder: Path
    """Where the row is trained."""
    training: Any
    """Settings of its training; None where there is none beside the world model's."""
    method: MethodConfig

    @property
    def key(self) -> tuple[str, int]:
        """What tells it apart."""
        return self.row.name, self.seed

    @property
    def card(self) -> Card | Sb3Card | None:
        """What its training says of itself; None where there is none, or it is not finished."""
        if isinstance(self.training, Sb3Config):
            return sb3_card(self.folder) if (self.folder / "card.json").exists() else None
        if self.row.train is None or not (self.folder / "baseline.json").exists():
            return None
        return offline_card(self.folder, self.row.train)

    @property
    def made(self) -> bool:
        """Whether everything is trained, for as many environment steps as are asked for."""
        card = self.card
        if self.training is not None and card is None:
            return False
        if isinstance(card, Sb3Card):
            return card.config.steps >= int(self.training.steps)
        return not self.plans or (self.home / "checkpoint").exists()

    @property
    def plans(self) -> bool:
        """Whether it acts with the world model."""
        return isinstance(self.method, LearnedConfig | PeerMethod)


def compare_baselines(
    comparison: BaselinesConfig,
    names: Sequence[str],
    out: Path,
    device: torch.device,
    manifests: Path | None = None,
    overrides: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    time_again: bool = False,
    peer_python: Path | None = None,
) -> list[ResultRow]:
    """Make and measure the rows of these names (all for none); finished parts in `out` are kept.

    manifests: folder of them, see `load_manifests`. overrides: further changes of every row's run. stages: which of the
    two are done; rows that are not trained yet are left out of an evaluation alone. time_again: take the times of
    finished rows again. peer_python: interpreter that has stable-worldmodel; without it rows of kind peer are left out.
    Returns the results of these rows, with the training seed in `seed`; table.md and results.json also have those of
    other rows that were finished before. Raises ValueError for an unknown name, SchemaError for a wrong key, and
    RuntimeError naming the first setting in which a finished part differs from the comparison.
    """
    chosen = pick_rows(comparison.rows, names)
    if peer_python is None:
        for row in [row for row in chosen if row.asks_peer]:
            print(f"{row.name}: left out, since no interpreter with stable-worldmodel is given", file=sys.stderr)
        chosen = [row for row in chosen if not row.asks_peer]
    run = config.load(comparison.run, [*words(comparison.set), *overrides])
    goals = load_manifests(comparison, manifests, run.task)
    entries = [e for row in comparison.rows for e in entries_of(comparison, row, run, out, overrides, peer_python)]
    mine = [entry for entry in entries if entry.row in chosen]
    for entry in mine:
        claim(entry)
    results: dict[tuple[str, int], list[ResultRow]] = {}
    if "evaluate" in stages:  # so that a call that is killed, or is for some rows, keeps the others in the table
        results = {entry.key: _finished(entry, comparison, goals, out, device) for entry in entries}
    with Processes(run.evaluate.processes) as processes:
        for entry in sorted(mine, key=lambda entry: entry.seed):  # a whole table early, then the next seed's
            print(f"== {run.task}, seed {entry.seed}, {entry.row.name}", flush=True)
            if "train" in stages:
                make(entry, run, out, device)
            if "evaluate" not in stages:
                continue
            if not entry.made:
                print(f"{entry.row.name}: not trained yet, left out", file=sys.stderr)
                continue
            results[entry.key] = list(measure(entry, comparison, goals, out, device, processes, time_again))
            _write(entries, results, out)
    return [row for entry in mine for row in results.get(entry.key, ())]


def entries_of(
    comparison: BaselinesConfig,
    row: BaselineRow,
    shared: RunConfig,
    out: Path,
    overrides: Sequence[str],
    peer_python: Path | None = None,
) -> Iterator[Entry]:
    """A row with every seed it is made for; only the first where nothing of it is learned."""
    run = shared
    if row.run is not None:
        run = config.load(row.run, [*words(comparison.set | row.set), *overrides])
        if run.task != shared.task:
            raise ValueError(f"row {row.name}: {row.run} is of {run.task}, but the comparison is of {shared.task}")
    for seed in [seed for seed in comparison.seeds if not row.seeds or seed in row.seeds]:
        of_seed = out / f"seed_{seed}"
        folder, home = of_seed / row.name, of_seed if row.run is None else of_seed / Path(row.run).stem
        method, training = _method(row, run, folder, home, peer_python), None
        if row.train is not None:
            training = settings(row.train, row.settings)
            if isinstance(training, Sb3Config):
                training = replace(training, task=run.task, settings=run.settings, seed=seed).resolved
        yield Entry(row, seed, with_seed(run, seed), home, folder, training, method)
        if not isinstance(method, LearnedConfig | Sb3Method | PeerMethod):
            return


def _method(row: BaselineRow, run: RunConfig, folder: Path, home: Path, peer_python: Path | None) -> MethodConfig:
    """How a row acts."""
    if not row.method and row.train is None:
        for method in run.evaluate.methods:
            if method.name == row.name:
                return method
        known = ", ".join(method.name for method in run.evaluate.methods)
        raise ValueError(f"row {row.name} has no method, and none of its run is called so: add one, or take {known}")
    given = {"name": row.name}
    if row.train is not None:
        given |= {"kind": row.train if row.train in OFFLINE else "sb3", "path": str(folder)}
    if row.asks_peer:
        given |= {"path": str(home / "checkpoint"), "python": str(peer_python)}
    return build(EvaluateConfig, {"methods": [row.method | given]}, f"row {row.name}").methods[0]


def claim(entry: Entry) -> None:
    """Raise RuntimeError naming the first setting in which a finished training is another than the comparison's."""
    kept = entry.home / "checkpoint" / "config.json"
    if kept.exists():
        refuse_others(entry.home, leaves(_trained(entry.run)), leaves(_found(read_json(kept))))
    card = entry.card
    if card is None:
        return
    ours, theirs = leaves(entry.training), leaves(card.config)
    for name in UNBOUND if isinstance(card, Sb3Card) else ():
        if name != "steps" or theirs[name] < ours[name]:  # more steps train on
            ours[name] = theirs[name]
    refuse_others(entry.folder, ours, theirs)


def _trained(run: RunConfig) -> dict[str, Any]:
    """The settings that a checkpoint of a run depends on, beside its recordings."""
    said = asdict(run)
    parts = {name: said[name] for name in ("task", "model", "objective", "train")}
    parts["cost_to_go"] = said["cost_to_go"] if run.cost_to_go.steps else None
    parts["proposal"] = said["proposal"] if run.proposal.steps else None
    parts["readout"] = said["readout"] if run.readout.entries else None
    return parts


def _found(header: dict[str, Any]) -> dict[str, Any]:
    """The same of a checkpoint's config.json."""
    heads = {name: header[name] for name in ("model", "cost_to_go", "proposal", "readout")}
    return heads | {
        "task": header["origin"]["task"],
        **{name: header["training"][name] for name in ("objective", "train")},
    }


def make(entry: Entry, shared: RunConfig, out: Path, device: torch.device) -> None:
    """Record and train what is not there yet."""
    offline = entry.training is not None and not isinstance(entry.training, Sb3Config)
    needs_model = offline or entry.plans
    if entry.made or not (needs_model or entry.training is not None):
        return
    store = None
    if needs_model:
        recorded = replace(entry.run, collect=replace(entry.run.collect, seed=shared.collect.seed))
        alike = (recorded.settings, recorded.collect) == (shared.settings, shared.collect)
        data = out / ("data" if alike else f"{entry.home.name}_data")
        store = partial(pipeline.record, recorded, data, processes=1)
    if store is not None and not (entry.home / "checkpoint").exists():
        pipeline.fit(entry.run, store(), entry.home, device)
    if entry.training is None:
        return
    assert entry.row.train is not None
    job = Job(entry.folder, device=str(device))
    if offline:
        assert store is not None
        job = replace(job, checkpoint=entry.home / "checkpoint", data=store().path)
    print(TRAINERS[entry.row.train].train(entry.training, job).summary(entry.folder))


def measure(
    entry: Entry,
    comparison: BaselinesConfig,
    goals: Mapping[str, Manifest],
    out: Path,
    device: torch.device,
    processes: Processes | None,
    time_again: bool = False,
) -> Iterator[ResultRow]:
    """A row's results on its manifests; finished ones are read back, while they are of the same weights and goals.

    processes: who runs the goals of the others; None leaves those out.
    """
    how, folder = entry.run.evaluate, out / f"seed_{entry.seed}" / "evaluation"
    checkpoint: Checkpoint | None = None
    if isinstance(entry.method, LearnedConfig):
        checkpoint = load(entry.home / "checkpoint", str(device))
    method = within_budget(entry.method, checkpoint, how.threads, quiet=False)
    policy = None
    if processes is not None:
        _keep_setup(entry, method, out)
    for manifest in [goals[name] for name in entry.row.manifests or comparison.manifests]:
        if not applicable([method], manifest):
            continue
        keep_manifest(manifest, folder / f"manifest_{manifest.goals.name}.json")
        key = outcome_key(method, manifest, checkpoint, entry.seed)
        of = {"key": key, "timed_plans": how.timed_plans, "threads": how.threads, "device": acts_on(method, checkpoint)}
        path = folder / "rows" / f"{manifest.goals.name}.{method.name}.json"
        kept = read_json(path) if path.exists() else {}
        if not time_again and kept.get("of") == of:
            yield build(ResultRow, kept["row"], str(path), "row")
        elif processes is not None:
            policy = policy or make_policy(method, checkpoint, entry.seed)
            row = run_method(how, method, policy, manifest, checkpoint, folder, processes).row
            write_json({"of": of, "row": asdict(row)}, path)
            yield row


def _keep_setup(entry: Entry, method: MethodConfig, out: Path) -> None:
    """Add a method to what it takes to run this seed's again, of which `lewm compare runs` makes videos."""
    run_dir = out / f"seed_{entry.seed}"
    shared, own = (str((folder / "checkpoint").resolve()) for folder in (run_dir, entry.home))
    known = Setup(shared, entry.seed, ())
    if (run_dir / "evaluation" / "setup.json").exists():
        known = load_setup(run_dir)
    methods = tuple(other for other in known.methods if other.name != method.name)
    others = known.others | ({method.name: own} if own != shared else {})
    save_setup(Setup(shared, entry.seed, (*methods, method), others), run_dir)


def _finished(
    entry: Entry, comparison: BaselinesConfig, goals: Mapping[str, Manifest], out: Path, device: torch.device
) -> list[ResultRow]:
    """What earlier calls measured of a row; nothing where it was made with other settings."""
    try:
        claim(entry)
    except RuntimeError as error:
        print(f"{entry.row.name}: left out of the table ({error})", file=sys.stderr)
        return []
    return list(measure(entry, comparison, goals, out, device, None)) if entry.made else []


def _write(entries: Sequence[Entry], results: dict[tuple[str, int], list[ResultRow]], out: Path) -> None:
    """What is known so far: the table, all rows, and each seed's as `lewm evaluate` writes them."""
    rows = [row for entry in entries for row in results.get((entry.row.name, entry.seed), ())]
    (out / "table.md").write_text(table(rows) + "\n")
    save_results(rows, out / "results.json")
    for seed in {row.seed for row in rows}:
        save_results([row for row in rows if row.seed == seed], out / f"seed_{seed}" / "results.json")
