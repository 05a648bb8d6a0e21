"""`lewm compare baselines`: planners on one world model, and everything that goals are reached by without it.

Every row is trained once per seed, by the code of `lewm train` and `lewm train-baseline`, and evaluated on the same
frozen manifests. Resumable: what either command finished in the folder is found, whoever called it.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from lewm.compare.baselines_table import table
from lewm.compare.shared import check_names, leaves, pick_rows, read_comparison, refuse_others, words
from lewm.config import RunConfig, with_seed
from lewm.evaluate.evaluate import EvaluateConfig, acts_on, applicable, outcome_key, run_method
from lewm.evaluate.fingerprint import keep_manifest
from lewm.evaluate.manifest import Manifest, load_manifest
from lewm.evaluate.methods import LearnedConfig, MethodConfig, make_policy, within_budget
from lewm.evaluate.results import ResultRow, save_results
from lewm.sb3.config import UNBOUND, Sb3Card, Sb3Config
from lewm.sb3.config import read_card as sb3_card
from lewm.schema import build, read_json, write_json

STAGES = ("train", "evaluate")
"""What is done to a row."""
OURS = ("checkpoint", "train", "evaluation")
"""Folders of a seed that are no row's."""


@dataclass(frozen=True)
class BaselineRow:
    """One way to reach goals."""

    name: str
    """Name in the table, and of the row's folder."""
    method: dict[str, Any] = field(default_factory=dict)
    """What `evaluate.methods` would list; name and path are filled in, and the python of a peer. Empty: the method of
    this name of the row's run, or of a row that is trained {kind: gcbc} (what was trained) or {kind: sb3}."""
    train: str | None = None
    """What `lewm train-baseline` trains for it; null for rows that need none."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that training, as its --keys lists them; steps among them."""
    run: str | None = None
    """Another world model, trained once for the rows that name it: a shipped run or a YAML file. Null: the one that all
    rows share."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of that other run that are changed, by dotted name."""
    seeds: tuple[int, ...] = ()
    """The only training seeds that the row is made for; empty for all."""
    manifests: tuple[str, ...] = ()
    """The only manifests that it is evaluated on; empty for all."""

    @property
    def asks_peer(self) -> bool:
        """Whether stable-worldmodel decides."""
        return self.method.get("kind") == "peer"

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in OURS:
            raise ValueError(f"name is {self.name!r}; it names a folder, other than {', '.join(OURS)}")
        if self.train is not None and self.train not in TRAINERS:
            raise ValueError(f"row {self.name}: train is {self.train!r}; choose one of {', '.join(TRAINERS)}")
        if self.train is not None and self.run is not None:
            raise ValueError(f"row {self.name} has both train and run; leave one out")
        for name, needed in (("settings", "train"), ("set", "run")):
            if getattr(self, name) and getattr(self, needed) is None:
                raise ValueError(f"row {self.name} has {name} but no {needed}, which they would change")


@dataclass(frozen=True)
class BaselinesConfig:
    """A comparison."""

    run: str
    """Recordings and world model that the rows share: a shipped run or a YAML file."""
    manifests: tuple[str, ...]
    """What all are evaluated on: files NAME.json.gz of one folder."""
    rows: tuple[BaselineRow, ...]
    """What is compared."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the runs that are changed in every row, by dotted name."""

    def __post_init__(self) -> None:
        check_names(self.rows)
        if not self.manifests or not self.seeds:
            raise ValueError("a comparison needs at least one manifest and one seed")
        for row in self.rows:
            if unknown := [name for name in row.manifests if name not in self.manifests]:
                raise ValueError(f"row {row.name}: manifest {unknown[0]!r} is not among {', '.join(self.manifests)}")
        _check_homes(self.rows)


def _check_homes(rows: Sequence[BaselineRow]) -> None:
    """Raise ValueError where two trainings would share a folder: another world model's is named after its run."""
    homes: dict[str, BaselineRow] = {}
    for row in rows:
        if row.run is None:
            continue
        first = homes.setdefault(Path(row.run).stem, row)
        if (first.run, first.set) != (row.run, row.set):
            raise ValueError(
                f"rows {first.name} and {row.name} would share one world model's folder, but run or set differ: give "
                "one of them a YAML file of another name"
            )
    for row in rows:
        if row.train is not None and row.name in homes:
            raise ValueError(
                f"row {row.name} is trained, and has the name of the run of {homes[row.name].name}: rename it"
            )


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


def load_config(name: str | Path) -> BaselinesConfig:
    """A comparison by path or shipped name. Raises FileNotFoundError, and SchemaError naming the key."""
    return read_comparison(BaselinesConfig, "baselines", name)


def load_manifests(comparison: BaselinesConfig, folder: Path | None, task: str) -> dict[str, Manifest]:
    """The manifests by name, from docs/results/manifests/TASK for None.

    Raises FileNotFoundError for a missing one and ValueError for one of another task.
    """
    found, where = {}, folder or Path("docs/results/manifests") / task
    for name in comparison.manifests:
        path = where / f"{name}.json.gz"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: pass --manifests FOLDER, which holds NAME.json.gz for each of "
                f"{', '.join(comparison.manifests)} (lewm's repository has them in docs/results/manifests)"
            )
        found[name] = load_manifest(path)
        if found[name].task != task:
            raise ValueError(f"{path} holds goals of {found[name].task}, but the run is of {task}: pass another folder")
    return found


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
    Raises ValueError for an unknown name, SchemaError for a wrong key, and RuntimeError naming the first setting in
    which a finished part differs from the comparison. Every result has the training seed in `seed`.
    """
    rows = pick_rows(comparison.rows, names)
    if peer_python is None:
        for row in [row for row in rows if row.asks_peer]:
            print(f"{row.name}: left out, since no interpreter with stable-worldmodel is given", file=sys.stderr)
        rows = [row for row in rows if not row.asks_peer]
    run = config.load(comparison.run, [*words(comparison.set), *overrides])
    goals = load_manifests(comparison, manifests, run.task)
    entries = [entry for row in rows for entry in entries_of(comparison, row, run, out, overrides, peer_python)]
    for entry in entries:
        claim(entry)
    results: dict[tuple[str, int], list[ResultRow]] = {}
    for entry in sorted(entries, key=lambda entry: entry.seed):  # a whole table early, then the next seed's
        print(f"== {run.task}, seed {entry.seed}, {entry.row.name}", flush=True)
        if "train" in stages:
            make(entry, run, out, device)
        if "evaluate" not in stages:
            continue
        if not entry.made:
            print(f"{entry.row.name}: not trained yet, left out", file=sys.stderr)
            continue
        mine = [goals[name] for name in entry.row.manifests or comparison.manifests]
        results[entry.row.name, entry.seed] = list(measure(entry, mine, out, device, time_again))
        _write(entries, results, out)
    return [row for entry in entries for row in results.get((entry.row.name, entry.seed), ())]


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
    entry: Entry, manifests: Sequence[Manifest], out: Path, device: torch.device, time_again: bool
) -> Iterator[ResultRow]:
    """A row's results on the manifests; finished ones are read back, while they are of the same weights and goals."""
    how, folder = entry.run.evaluate, out / f"seed_{entry.seed}" / "evaluation"
    checkpoint: Checkpoint | None = None
    if isinstance(entry.method, LearnedConfig):
        checkpoint = load(entry.home / "checkpoint", str(device))
    method = within_budget(entry.method, checkpoint, how.threads, quiet=False)
    policy = None
    for manifest in manifests:
        keep_manifest(manifest, folder / f"manifest_{manifest.goals.name}.json")
        if not applicable([method], manifest):
            continue
        key = outcome_key(method, manifest, checkpoint, entry.seed)
        of = {"key": key, "timed_plans": how.timed_plans, "threads": how.threads, "device": acts_on(method, checkpoint)}
        path = folder / "rows" / f"{manifest.goals.name}.{method.name}.json"
        kept = read_json(path) if path.exists() else {}
        if not time_again and kept.get("of") == of:
            yield build(ResultRow, kept["row"], str(path), "row")
            continue
        policy = policy or make_policy(method, checkpoint, entry.seed)
        row = run_method(how, method, policy, manifest, checkpoint, folder).row
        write_json({"of": of, "row": asdict(row)}, path)
        yield row


def _write(entries: Sequence[Entry], results: dict[tuple[str, int], list[ResultRow]], out: Path) -> None:
    """What is known so far: the table, all rows, and each seed's as `lewm evaluate` writes them."""
    rows = [row for entry in entries for row in results.get((entry.row.name, entry.seed), ())]
    (out / "table.md").write_text(table(rows) + "\n")
    save_results(rows, out / "results.json")
    for seed in {row.seed for row in rows}:
        save_results([row for row in rows if row.seed == seed], out / f"seed_{seed}" / "results.json")
