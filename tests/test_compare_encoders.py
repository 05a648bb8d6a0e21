"""`lewm compare encoders`: the shipped comparisons shrunk to seconds, resuming, what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from lewm import config
from lewm.cli import main
from lewm.compare import encoders as comparing
from lewm.compare.encoders import EncoderResult, EncoderRow, EncodersConfig, compare_encoders, load_config, table
from lewm.evaluate.statistics import wilson
from lewm.evaluate.timing import PlanTimes, kept_times
from lewm.schema import SchemaError
from lewm.study.probes import ProbesConfig

CPU = torch.device("cpu")
SMALL = "--collect.episodes 8 --collect.steps 40 --collect.shard_episodes 4 --train.batch 4 --train.steps 2 "
SMALL += "--train.held_out 0.25 --cost_to_go.steps 2 --cost_to_go.batch 8 --evaluate.timed_plans 2"
FEW = {"train.steps": 2, "train.batch": 2, "train.held_out": 0.25, "train.probe_frames": 16}


def shrunk(name: str) -> EncodersConfig:
    """A shipped comparison with three goals a set and searches of four candidates."""
    comparison = load_config(name)
    changes = dict(comparison.set)
    changes["evaluate.goals"] = [goals | {"count": 3} for goals in changes["evaluate.goals"]]
    planner = {"name": "cem", "candidates": 4, "iterations": 1, "elites": 2, "horizon": 1}
    changes["evaluate.methods"] = [method | {"planner": planner} for method in changes["evaluate.methods"]]
    rows = tuple(replace(row, pretrain_set=row.pretrain_set | FEW if row.pretrain else {}) for row in comparison.rows)
    return replace(comparison, set=changes, rows=rows)


@pytest.fixture(scope="module")
def quick() -> pytest.MonkeyPatch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "PROBES", ProbesConfig(frames=60, test_frames=30, steps=2))
        yield patch


@pytest.fixture(scope="module")
def compared(quick: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[EncoderResult], Path]:
    out = tmp_path_factory.mktemp("encoders")
    return compare_encoders(shrunk("two_room"), [], out, CPU, SMALL.split()), out


def test_every_row_is_made_and_measured(compared: tuple[list[EncoderResult], Path]) -> None:
    results, _ = compared
    assert [r.encoder for r in results] == [row.name for row in load_config("two_room").rows]
    for r in results:
        assert set(r.linear_r2) == set(r.mlp_r2) == {"x", "y"} == set(r.state_error)
        assert len(r.latent_error) == comparing.IMAGINED and all(len(e) == 5 for e in r.state_error.values())
        assert [(s.goals, s.method, s.n) for s in r.success] == [
            (goals, method, 3) for goals in ("ahead_25", "across_rooms") for method in ("cost_to_go", "latent_l2")
        ]
        assert all((s.low, s.high) == wilson(s.successes, 3) for s in r.success)
        assert len(r.plan_ms_p50) == 4 and min(r.plan_ms_p50) > 0 and r.train_cpu_minutes > 0
    named = {r.encoder: r for r in results}
    assert named["lewm"].frozen_parameters == 0 and named["lewm"].cache_cpu_minutes is None
    assert named["lewm"].tokens == 1 and named["pixels"].tokens == named["vjepa2"].tokens == 16
    assert named["pixels"].frozen_parameters == 0 and named["pixels"].pretrain_cpu_minutes is None
    assert named["vjepa2"].frozen_parameters == named["random"].frozen_parameters > 100_000
    assert named["vjepa2"].pretrain_steps == 2 and named["vjepa2"].pretrain_cpu_minutes is not None
    assert named["vjepa2"].trained_parameters == named["ijepa"].trained_parameters  # one predictor for all tokens


@pytest.mark.parametrize("name", config.shipped("encoders"))
def test_shipped_comparisons_can_be_run(name: str, tmp_path: Path) -> None:
    """Every key is known; one row is made with two_room, above."""
    comparison = load_config(name)
    runs = {row.name: comparing._run_of(comparison, row, tmp_path, []) for row in comparison.rows}
    assert {run.task for run in runs.values()} == {name}
    assert runs["lewm"].model.encoder.name == "conv"
    assert all(run.model.encoder.name == "frozen" for row, run in runs.items() if row != "lewm")
    assert len({json.dumps(asdict(run.evaluate)) for run in runs.values()}) == 1


def test_rows_differ_in_the_encoder_alone(compared: tuple[list[EncoderResult], Path]) -> None:
    """One store, one split, one set of goals."""
    _, out = compared
    manifests = [
        (out / row / "evaluation" / "manifest_ahead_25.json").read_text() for row in ("lewm", "vjepa2", "pixels")
    ]
    assert manifests[0] == manifests[1] == manifests[2]
    frozen = json.loads((out / "ijepa" / "checkpoint" / "config.json").read_text())["model"]["encoder"]
    assert Path(frozen["path"]) == (out / "ijepa" / "pretrain" / "encoder").resolve()


def test_a_finished_row_is_kept_and_other_settings_are_refused(
    compared: tuple[list[EncoderResult], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, out = compared
    monkeypatch.setattr(comparing, "_measure", lambda *_: pytest.fail("a finished row was measured again"))
    assert compare_encoders(shrunk("two_room"), ["pixels", "lewm"], out, CPU, SMALL.split()) == [results[0], results[4]]
    with pytest.raises(
        RuntimeError, match=r"lewm belongs to .* other settings: run\.train\.seed is 1 here and 0 there"
    ):
        compare_encoders(shrunk("two_room"), ["lewm"], out, CPU, [*SMALL.split(), "--train.seed", "1"])


def test_plans_can_be_timed_again(compared: tuple[list[EncoderResult], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = compared
    monkeypatch.setattr(comparing, "time_plans", lambda *_: PlanTimes(7.0, 8.0, 1.0, 2, 1))
    monkeypatch.setattr("lewm.evaluate.runner.stand", lambda *_: pytest.fail("a finished goal was tried again"))
    before = (out / "pixels" / "row.json").read_text()
    comparing.time_again(shrunk("two_room"), out, CPU, SMALL.split())
    again = compare_encoders(shrunk("two_room"), ["pixels"], out, CPU, SMALL.split())
    assert again == [replace(results[4], plan_ms_p50=(7.0,) * 4)]
    (out / "pixels" / "row.json").write_text(before)


def test_a_row_that_was_killed_finds_what_it_had_finished(
    compared: tuple[list[EncoderResult], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, out = compared
    (out / "vjepa2" / "row.json").unlink()
    before = kept_times(out / "vjepa2")
    again = compare_encoders(shrunk("two_room"), ["vjepa2"], out, CPU, SMALL.split())[0]
    assert again.success == results[1].success and again.linear_r2 == results[1].linear_r2
    after = kept_times(out / "vjepa2")
    assert after["pretrain"].cpu_seconds >= before["pretrain"].cpu_seconds > 0  # what was spent before still counts


def test_the_table_says_what_was_measured(compared: tuple[list[EncoderResult], Path]) -> None:
    lines = table(compared[0]).splitlines()
    pixels, x = [line for line in lines if line.startswith("| pixels")], compared[0][4]
    assert f"| 16 x 108 | {x.trained_parameters:,} | 0 | - |" in pixels[0]
    linear, mlp = (r2["x"].value for r2 in (x.linear_r2, x.mlp_r2))
    assert pixels[1].startswith(f"| pixels | {linear:.3f} / {mlp:.3f} |")
    assert f"{x.state_error['y'][0]:.3f}, {x.state_error['y'][4]:.3f}" in pixels[2]
    assert f"| {100 * x.success[0].success:.0f} (" in pixels[3] and f"{x.plan_ms_p50[0]:.1f} ms" in pixels[3]
    wide = table([replace(compared[0][0], state_error={}), x])
    first = compared[0][0].latent_error
    assert f"| lewm | {first[0]:.3f}, {first[4]:.3f} | - | - |" in wide  # latents too wide to be decoded
    assert table([]) == "no rows"


def test_the_command(
    compared: tuple[list[EncoderResult], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = shrunk("two_room")
    rows = [
        {"name": row.name, "pretrain": row.pretrain, "pretrain_set": row.pretrain_set, "set": row.set}
        for row in comparison.rows
    ]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"run": comparison.run, "set": comparison.set, "rows": rows}))
    words = ["compare", "encoders", str(tmp_path / "small.yaml"), "--rows", "lewm", "pixels", "--out", str(compared[1])]
    main([*words, "--device", "cpu", "--json", str(tmp_path / "rows.json"), *SMALL.split()])
    assert "| pixels |" in capsys.readouterr().out
    assert [row["encoder"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["lewm", "pixels"]


def test_wrong_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    comparison = load_config("two_room")
    with pytest.raises(ValueError, match=r"no row is called 'vjepa3'; there are lewm, vjepa2"):
        compare_encoders(comparison, ["vjepa3"], tmp_path, CPU)
    wrong = replace(comparison, rows=(EncoderRow("a", set={"train.stebs": 2}),))
    with pytest.raises(SchemaError, match=r"train\.stebs is unknown"):
        compare_encoders(wrong, [], tmp_path, CPU)
    wrong = replace(comparison, rows=(EncoderRow("a", "two_room_vjepa2", {"train.stebs": 2}),))
    with pytest.raises(SchemaError, match=r"train\.stebs is unknown"):
        compare_encoders(wrong, [], tmp_path, CPU)
    wrong = replace(comparison, rows=(EncoderRow("a", "two_room_vjepa2"),))
    with pytest.raises(ValueError, match=r"row a pretrains an encoder, but its model\.encoder is conv: set it to"):
        compare_encoders(wrong, [], tmp_path, CPU)
    with pytest.raises(FileNotFoundError, match=r"no comparison two_rooms: give a YAML file, or one of .*two_room"):
        load_config("two_rooms")
    with pytest.raises(ValueError, match=r"rows are \['a', 'a'\]; a comparison needs at least one, each with its own"):
        EncodersConfig("two_room", (EncoderRow("a"), EncoderRow("a")))
    assert not list(tmp_path.rglob("*.json"))
