"""Traces and the report: what is drawn is what happened, the page stands alone and can be written again from files."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lewm.baselines import RandomConfig
from lewm.checkpoint import Checkpoint
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig, Evaluated, evaluate, held_out_manifests
from lewm.evaluate.logged import Logged, read_outcomes
from lewm.evaluate.manifest import GoalSet, make_manifest, stand
from lewm.evaluate.methods import PlanConfig
from lewm.evaluate.report import rebuild_report, report_run, write_report
from lewm.evaluate.report_cards import film_strip, make_cards
from lewm.evaluate.report_figures import picture
from lewm.evaluate.results import save_results
from lewm.evaluate.runner import Outcome
from lewm.evaluate.trace import FrameBank, LatentMap, Trace, _Watch, load_traces, pick, save_traces, trace_problems
from planners import CEM

STEPWISE = PlanConfig("stepwise", planner=CEM(horizon=2, candidates=8, iterations=3, elites=3))
OPEN_LOOP = PlanConfig("open_loop", planner=CEM(horizon=3, candidates=8, iterations=2, elites=3), replan_every=3)
CONFIG = EvaluateConfig(
    goals=(GoalSet("near", offset=10, budget=23, count=12), GoalSet("far", offset=25, budget=30, count=6)),
    methods=(STEPWISE, OPEN_LOOP, RandomConfig()),
    timed_plans=2,
)


class Page(HTMLParser):
    """What a browser would do with a page: every address it loads, and whether tags close as they should."""

    VOID = ("meta", "img", "br", "rect", "line", "circle", "path", "polyline", "polygon")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tiny_store: Store, tiny_checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """An evaluation of a model that knows nothing: (evaluated, checkpoint, bank, its folder)."""
    from lewm.checkpoint import load

    out = tmp_path_factory.mktemp("report")
    checkpoint = load(tiny_checkpoint_path)
    manifests = held_out_manifests(CONFIG, tiny_store, checkpoint, out / "evaluation")
    evaluated = evaluate(CONFIG, manifests, checkpoint, out / "evaluation", quiet=True)
    save_results([e.row for e in evaluated], out / "results.json")
    return evaluated, checkpoint, FrameBank.from_store(tiny_store, checkpoint.model), out


@pytest.fixture(scope="module")
def traces(run) -> list[Trace]:
    evaluated, checkpoint, bank, _ = run
    return [t for e in evaluated[:2] for t in trace_problems(e, checkpoint, [5, 0, 7], bank)]


def change(evaluated: Evaluated, success: bool) -> Evaluated:
    """The same method, had it always (never) reached the goal."""
    n = len(evaluated.outcomes)
    outcomes = tuple(dataclasses.replace(o, success=success) for o in evaluated.outcomes)
    said = "01"[success] * n
    row = dataclasses.replace(
        evaluated.row, successes=n * success, success=float(success), low=0.7, high=1.0, reached=said
    )
    return dataclasses.replace(evaluated, outcomes=outcomes, row=row)


# Traces ---------------------------------------------------------------------------------------------------------------


def test_a_trace_shows_the_logged_episode(run, traces):
    evaluated, _, _, _ = run
    for number, trace in enumerate(traces):
        e = evaluated[number // 3]
        logged = e.outcomes[trace.problem]
        assert (trace.goals, trace.method, trace.problem) == ("near", e.row.method, (5, 0, 7)[number % 3])
        assert trace.reproduced and (trace.success, trace.steps) == (logged.success, logged.steps)
        assert len(trace.distance_T) == trace.steps
        assert trace.distance_T[-1] == logged.final
        assert min(trace.distance_T.min(), e.manifest.problems[trace.problem].distance) == logged.closest


def test_frames_plans_and_latents_have_their_steps(run, traces):
    _, checkpoint, bank, _ = run
    skip, dim = checkpoint.model.config.frame_skip, checkpoint.model.tokens * checkpoint.model.latent_dim
    for trace in traces:
        method = {"stepwise": STEPWISE, "open_loop": OPEN_LOOP}[trace.method]
        horizon, iterations = method.planner.horizon, method.planner.iterations
        replans = len(range(0, trace.steps, skip * method.replan_every))
        assert trace.seen_step_F.tolist() == [*range(0, trace.steps, skip), trace.steps]
        assert trace.seen_step_F[trace.planned_R].tolist() == [r * skip * method.replan_every for r in range(replans)]
        assert trace.seen_FYXC.shape == (len(trace.seen_step_F), 32, 32, 3) and trace.seen_FYXC.dtype == np.uint8
        assert trace.seen_RYXC.shape == (replans + 1, 32, 32, 3)
        assert trace.imagined_RHYXC.shape == (replans, horizon, 32, 32, 3)
        assert trace.imagined_latent_RHD.shape == (replans, horizon, dim)
        assert trace.spread_RI.shape == trace.best_cost_RI.shape == (replans, iterations)
        assert trace.cost_R.shape == (replans,) and trace.goal_latent_D.shape == (dim,)
        frames = torch.from_numpy(trace.seen_FYXC).permute(0, 3, 1, 2)[:, None]
        with torch.inference_mode():
            encoded = checkpoint.model.encode(frames)[:, 0].flatten(1)
        torch.testing.assert_close(torch.from_numpy(trace.latent_FD), encoded, rtol=1e-4, atol=1e-5)
        nearest = bank.pixels_FYXC[bank.nearest(torch.from_numpy(trace.imagined_latent_RHD))]
        assert np.array_equal(trace.imagined_RHYXC, nearest)
        assert np.array_equal(trace.latent_RD, trace.latent_FD[trace.planned_R])


def test_the_goal_and_the_start_are_those_of_the_manifest(run, traces):
    import envs

    manifest = run[0][0].manifest
    task = envs.make(manifest.task, **manifest.settings)
    for trace in traces:
        problem = manifest.problems[trace.problem]
        assert np.array_equal(trace.goal_frame, task.goal_image(problem.goal_state))
        assert np.array_equal(trace.seen_FYXC[0], task.goal_image(problem.start_state))


def test_an_episode_in_a_shifted_world_is_shown_in_that_world(run, tiny_store):
    evaluated, checkpoint, bank, _ = run
    goals = GoalSet("shifted", offset=10, budget=12, count=2, shift=("floor", "agent"))
    manifest = make_manifest(goals, tiny_store, np.arange(8), 0)
    shifted = dataclasses.replace(evaluated[0], manifest=manifest)
    for trace in trace_problems(shifted, checkpoint, [0, 1], bank):
        problem = manifest.problems[trace.problem]
        task = stand(manifest, problem)
        assert np.array_equal(trace.goal_frame, task.goal_image(problem.goal_state))
        assert np.array_equal(trace.seen_FYXC[0], task.render())
        task.vary({})
        assert not np.array_equal(trace.seen_FYXC[0], task.render())


def test_watching_stops_with_the_problem_not_with_the_batch(run):
    import envs

    starts = np.array([[0.2, 0.5], [0.3, 0.5]])
    tasks = [envs.make("two_room", size=32) for _ in starts]
    watch = _Watch(SimpleNamespace(last=None), run[2], starts, np.array([[0.2, 0.8], [0.3, 0.6]]))
    for step, active in enumerate(([True, True], [False, True], [False, True])):
        for task, x in zip(tasks, (0.2, 0.3), strict=True):
            task.set_state([x, 0.5 + 0.03 * (step + 1)])
        watch(step, tasks, np.array(active))
    assert [len(frames) for frames in watch.frames] == [3, 4]
    assert np.allclose(watch.distance[0], [0.27, 0.24]) and np.allclose(watch.distance[1], [0.07, 0.04, 0.01])
    assert np.array_equal(watch.frames[1][2], tasks[1].goal_image([0.3, 0.56]))


def test_a_trace_that_ends_otherwise_says_so(run):
    evaluated, checkpoint, bank, _ = run
    wrong = change(evaluated[0], not evaluated[0].outcomes[3].success)
    assert [t.reproduced for t in trace_problems(wrong, checkpoint, [3], bank)] == [False]


def test_only_world_model_planners_are_traced(run):
    evaluated, checkpoint, bank, _ = run
    with pytest.raises(ValueError, match="random does not plan with a world model"):
        trace_problems(evaluated[2], checkpoint, [0], bank)
    assert trace_problems(evaluated[0], checkpoint, [], bank) == []


def test_pick_takes_the_worst_failures_then_the_slowest_successes(run):
    def outcome(problem: int, success: bool, steps: int, final: float) -> Outcome:
        return Outcome(problem, success, steps, 0.0, final)

    rows = [(0, True, 9, 0.0), (1, False, 23, 0.2), (2, True, 20, 0.0), (3, False, 23, 0.9), (4, True, 9, 0.0)]
    evaluated = dataclasses.replace(run[0][0], outcomes=tuple(outcome(*row) for row in rows))
    assert pick(evaluated, 4) == [3, 1, 2, 0]
    assert pick(evaluated, 99) == [3, 1, 2, 0, 4]


def test_the_bank_finds_its_own_frames(run, tiny_store, tiny_checkpoint: Checkpoint):
    bank = FrameBank.from_store(tiny_store, tiny_checkpoint.model, count=50)
    again = FrameBank.from_store(tiny_store, tiny_checkpoint.model, count=50)
    assert bank.latent_FD.shape[0] == len(bank.pixels_FYXC) == 50
    assert torch.equal(bank.latent_FD, again.latent_FD) and np.array_equal(bank.pixels_FYXC, again.pixels_FYXC)
    found = bank.nearest(bank.latent_FD.reshape(5, 10, -1))
    assert found.shape == (5, 10)
    assert torch.equal(bank.latent_FD[found.ravel()], bank.latent_FD)
    with torch.inference_mode():
        encoded = tiny_checkpoint.model.encode(torch.from_numpy(bank.pixels_FYXC).permute(0, 3, 1, 2)[:, None])
    torch.testing.assert_close(encoded[:, 0].flatten(1), bank.latent_FD, rtol=1e-4, atol=1e-5)
    assert len(FrameBank.from_store(tiny_store, tiny_checkpoint.model).pixels_FYXC) == tiny_store.num_frames


def test_the_map_shows_the_widest_plane():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(300, 5, generator=generator) * torch.tensor([0.01, 9.0, 0.01, 3.0, 0.01]) + 2
    plane = LatentMap.fit(FrameBank(latent, np.zeros((300, 2, 2, 3), np.uint8)))
    assert np.allclose(np.abs(plane.axes_2D), np.eye(5)[[1, 3]], atol=0.1)
    assert (plane.axes_2D.max(1) > 0.9).all()
    assert plane.share_2.sum() > 0.999 and plane.share_2[0] > plane.share_2[1]
    assert np.corrcoef(plane.project(latent.numpy())[:, 0], latent[:, 1])[0, 1] > 0.999
    one = LatentMap.fit(FrameBank(torch.randn(9, 1, generator=generator), np.zeros((9, 2, 2, 3), np.uint8)))
    assert one.project(np.ones((4, 1), np.float32)).shape == (4, 2)


def test_traces_survive_a_round_trip(run, traces, tmp_path):
    (tmp_path / "stale.npz").touch()
    plane = LatentMap.fit(run[2])
    save_traces(traces, plane, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latent_map.npz", "near.open_loop.npz", "near.stepwise.npz"]
    loaded, loaded_plane = load_traces(tmp_path)
    assert loaded_plane is not None
    key = lambda t: (t.method, t.problem)  # noqa: E731
    pairs = [*zip(sorted(traces, key=key), sorted(loaded, key=key), strict=True), (plane, loaded_plane)]
    for before, after in pairs:
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(after, field.name)
            assert type(old) is type(new) and np.array_equal(old, new), field.name
    (tmp_path / "near.stepwise.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"near\.stepwise\.npz is damaged"):
        load_traces(tmp_path)
    assert load_traces(tmp_path / "nowhere") == ([], None)


# The page -------------------------------------------------------------------------------------------------------------


def test_the_report_stands_alone_and_can_be_written_again(run, tiny_store, tiny_checkpoint_path):
    evaluated, _, _, out = run
    path = report_run(evaluated, tiny_checkpoint_path, tiny_store, out, count=2, context={"note": "<b>bold & bare</b>"})
    text = path.read_text()
    page = Page(text)
    assert path == out / "report.html" and path.stat().st_size < 6e6
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert "&lt;b&gt;bold &amp; bare&lt;/b&gt;" in text and "<b>bold" not in text
    assert page.tags.count("details") == 2 * 2 * 2 + 1  # goal sets x planning methods x count, and the data set
    for expected in (
        "near",
        "far",
        "stepwise",
        "open_loop",
        "random",
        "solved at the start",
        "6 episodes for training",
    ):
        assert expected in text
    for e in evaluated:
        assert f"{100 * e.row.low:.1f} – {100 * e.row.high:.1f}" in text
    again = rebuild_report(out, out / "again.html")
    assert again.read_text() == text
    assert "linear probe R² of x" in json.loads((out / "evaluation" / "report.json").read_text())["health"]


def test_failures_come_first(run, traces):
    manifests = {"near": run[0][0].manifest}
    one = [dataclasses.replace(t, success=i % 2 == 0) for i, t in enumerate(traces)]
    cards = make_cards(one, manifests, {"stepwise": "s0", "open_loop": "s1"}, None)
    assert [c["trace"].success for c in cards] == [False] * 3 + [True] * 3
    assert [c["trace"].method for c in cards] == [
        "stepwise",
        "open_loop",
        "open_loop",
        "stepwise",
        "stepwise",
        "open_loop",
    ]


def test_the_strip_pairs_what_was_seen_with_what_was_imagined_for_it(traces):
    for trace in traces:
        columns = film_strip(trace)
        assert [c["step"] for c in columns] == trace.seen_step_F.tolist()
        assert columns[0]["imagined"] is None and columns[0]["end"] == picture(trace.imagined_RHYXC[0, -1])
        assert [i for i, c in enumerate(columns) if c["end"]] == trace.planned_R.tolist()
        every = 3 if trace.method == "open_loop" else 1
        for block, column in enumerate(columns[1:]):
            assert column["imagined"] == picture(trace.imagined_RHYXC[block // every, block % every])


@pytest.mark.parametrize("success", [True, False])
def test_all_reached_or_none(run, traces, success, tmp_path):
    measured = [change(e, success) for e in run[0][:3]]
    shown = [dataclasses.replace(t, success=success) for t in traces]
    text = write_report(measured, shown, {}, tmp_path / "r.html").read_text()
    Page(text)
    assert ("No failures" in text) == success and ("Failures first; 24 in all" in text) == (not success)
    assert "p = 1.000" in text and "not significant" in text and "nan" not in text.lower().replace("nano", "")


def test_one_method_no_traces_no_facts(run, tmp_path):
    text = write_report(run[0][:1], [], {}, tmp_path / "r.html").read_text()
    Page(text)
    assert "No episode was traced" in text and "reference" in text and "p = " not in text and "Commands" not in text
    with pytest.raises(ValueError, match="no result to report"):
        write_report([], [], {}, tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_costs_that_failed_leave_gaps_not_nonsense(run, traces, tmp_path):
    bad = dataclasses.replace(
        traces[0], cost_R=np.full_like(traces[0].cost_R, np.inf), best_cost_RI=traces[0].best_cost_RI + np.inf
    )
    text = write_report(run[0][:1], [bad], {}, tmp_path / "r.html").read_text()
    Page(text)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)


def test_significance_is_mcnemar_on_the_same_goals(run, tmp_path):
    better, worse = change(run[0][0], True), change(run[0][1], False)
    text = write_report([better, worse], [], {}, tmp_path / "r.html").read_text()
    assert "p < 0.001" in text.replace("&lt;", "<") and "won 0, lost 12" in text and "not significant" not in text


def test_what_is_missing_or_damaged_is_named(run, tiny_store, tiny_checkpoint_path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        rebuild_report(tmp_path)
    save_results([run[0][0].row], tmp_path / "results.json")
    with pytest.raises(FileNotFoundError, match=r"manifest_near\.json is missing"):
        rebuild_report(tmp_path)
    log = tmp_path / "a.jsonl"
    log.write_text(
        '{"key": "k"}\n{"problem": 0, "success": true, "steps": 3, "closest": 0.1, "final": 0.1}\n{"problem": 1, "su'
    )
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 is not an outcome"):
        read_outcomes(log)


def test_without_recordings_there_is_a_report_without_episodes(run, tiny_checkpoint_path, tmp_path):
    text = report_run(run[0], tiny_checkpoint_path, None, tmp_path).read_text()
    assert "No episode was traced" in text
    assert (tmp_path / "evaluation" / "manifest_near.json").exists()


def test_logged_results_are_enough_for_a_page(run, tmp_path):
    logged = [Logged(e.row, e.manifest, e.outcomes) for e in run[0]]
    live = write_report(run[0], [], {"seed": 0}, tmp_path / "a.html").read_text()
    assert write_report(logged, [], {"seed": 0}, tmp_path / "b.html").read_text() == live
