"""The command line: help, overrides, exit codes, one sentence per mistake, and a whole small session."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import lewm
from lewm import cli
from lewm.commands import plan
from lewm.config import RunConfig, dump, load, with_seed
from lewm.data.store import Store
from lewm.schema import describe

ROOT = Path(lewm.__file__).parent.parent
COMMANDS = ("demo", "collect", "inspect", "pretrain", "train", "plan", "evaluate", "report", "bench", "doctor")
COMMANDS += ("manifest", "compare", "power", "leaderboard")
RUN_COMMANDS = {
    "demo": [],
    "collect": ["--out", "x"],
    "train": ["--out", "x"],
    "evaluate": ["--out", "x", "--checkpoint", "y"],
}
"""Commands that work on a run, with what else they need."""

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    try:
        cli.main(list(words))
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0
    output = capsys.readouterr()
    return code, output.out, output.err


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lewm", *words], capture_output=True, text=True, cwd=ROOT)


def test_help_names_every_command(capsys: Capture) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "a first session:" in out
    for command in COMMANDS:
        assert f"\n    {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: Capture) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and out.startswith(f"usage: lewm {command}")
    if command in RUN_COMMANDS:
        assert "--keys" in out and "--print-config" in out and "--train.steps 500" in " ".join(out.split())


def test_promised_options(capsys: Capture) -> None:
    """What writes takes --out, what measures takes --json."""
    for command in ("demo", "collect", "inspect", "train", "plan", "evaluate", "report"):
        assert "--out" in run(capsys, command, "--help")[1]
    for command in ("demo", "evaluate", "bench", "doctor"):
        assert "--json FILE" in " ".join(run(capsys, command, "--help")[1].split())


def test_help_imports_neither_torch_nor_mujoco() -> None:
    code = "import sys\nfrom lewm.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('IMPORTED', [m for m in ('torch', 'mujoco', 'numpy', 'cv2', 'gymnasium') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "IMPORTED []", done.stderr


def test_as_a_module() -> None:
    done = shell("--version")
    assert (done.returncode, done.stdout) == (0, f"lewm {lewm.__version__}\n")
    done = shell("train", "two_room", "--out", "x", "--print-config", "--train.stepz", "5")
    expected = "lewm train: command line: train.stepz is unknown; did you mean train.steps?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    done = shell("inspect", "/nowhere/store")
    assert done.returncode == 1
    assert done.stderr.startswith("lewm inspect: ") and "/nowhere/store" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["demo", "--devise"], ["plan"], ["bench", "fly"], ["inspect", "a", "--x"]]
)
def test_what_is_not_understood_exits_with_2(words: list[str], capsys: Capture) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and err and "Traceback" not in err


@pytest.mark.parametrize(
    "words, code, expected",
    [
        (["--train.stepz", "5"], 2, "train.stepz is unknown; did you mean train.steps?"),
        (["--train.steps", "many"], 2, "train.steps is 'many'"),
        (["--train.frames", "1"], 2, "train.frames is 1; it must exceed"),
        (["--model.encoder.channels", "[16"], 2, "--model.encoder.channels"),
        (["--train.steps"], 2, "--train.steps has no value"),
        (["--device", "tpu"], 1, "--device tpu is unknown to torch; use auto, cpu, cuda or cuda:0"),
        (["--data", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], code: int, expected: str, tmp_path: Path, capsys: Capture) -> None:
    got, out, err = run(capsys, "train", "two_room", "--out", str(tmp_path / "out"), "--data", str(tmp_path), *words)
    assert (got, out) == (code, "")
    assert err.startswith("lewm train: ") and expected in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, code, expected",
    [
        ("task: two_room\nmodle: {}", 2, "run.yaml: modle is unknown; did you mean model?"),
        ("train: {}", 2, "run.yaml: task is missing"),
        ("task: {", 2, "run.yaml is not YAML"),
        ("task: tworoom", 1, "unknown task 'tworoom'"),
        ("task: two_room\nsettings: {sice: 3}", 1, "has no setting 'sice'"),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(
    text: str, code: int, expected: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    got, _, err = run(capsys, "collect", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "o"), "--processes", "1")
    assert got == code
    last = err.splitlines()[-1]
    assert last.startswith("lewm collect: ") and expected in last and "Traceback" not in err


def test_a_result_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "report", str(tmp_path), "--summary")
    assert code == 1 and err.startswith(f"lewm report: {tmp_path / 'results.json'} is no file: ")


def test_debug_shows_where_it_happened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration nowhere"):
        cli.main(["--debug", "collect", "nowhere", "--out", str(tmp_path)])


def test_ctrl_c_is_one_sentence(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lewm.pipeline.record", stop)
    code, out, err = run(capsys, "collect", "two_room", "--out", str(tmp_path / "o"))
    assert (code, out) == (130, "") and err.startswith("lewm collect: stopped; run the same command again")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_print_config_is_the_resolved_run(command: str, tmp_path: Path, capsys: Capture) -> None:
    words = [
        *RUN_COMMANDS[command],
        "--seed",
        "7",
        "--train.steps",
        "9",
        "--evaluate.goals.0.count=4",
        "--print-config",
    ]
    code, out, _ = run(capsys, command, "two_room", *words)
    assert code == 0
    (tmp_path / "again.yaml").write_text(out)
    expected = with_seed(load("two_room", ["--train.steps", "9", "--evaluate.goals.0.count=4"]), 7)
    assert load(tmp_path / "again.yaml") == expected
    assert yaml.safe_load(out)["train"]["steps"] == 9


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_keys_lists_every_key(command: str, capsys: Capture) -> None:
    code, out, _ = run(capsys, command, "two_room", *RUN_COMMANDS[command], "--keys")
    assert code == 0
    listed = {line.split()[0].removeprefix("--") for line in out.splitlines()}
    assert listed == {key for key, _ in describe(RunConfig)}


@pytest.mark.parametrize("command", ["collect", "train", "evaluate"])
@pytest.mark.parametrize("flag", ["--print-config", "--keys"])
def test_looking_at_a_run_needs_no_folder(command: str, flag: str, capsys: Capture) -> None:
    code, out, err = run(capsys, command, "two_room", flag)
    assert (code, err) == (0, "") and "steps" in out


def test_overrides_may_come_without_or_before_the_run(tmp_path: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "demo", "--train.steps", "9", "--print-config")
    assert (code, err) == (0, "") and yaml.safe_load(out)["train"]["steps"] == 9
    code, out, err = run(capsys, "train", "--train.steps", "9", "reacher", "--out", str(tmp_path), "--print-config")
    assert (code, err) == (0, "")
    assert (yaml.safe_load(out)["task"], yaml.safe_load(out)["train"]["steps"]) == ("reacher", 9)


@pytest.mark.parametrize("key", ["proposal", "cost-to-go"])
def test_a_key_that_begins_as_an_option_does_is_the_key(key: str, capsys: Capture) -> None:
    code, out, err = run(capsys, "train", "two_room", f"--{key}", "{steps: 20}", "--print-config")
    assert (code, err) == (0, "") and yaml.safe_load(out)[key.replace("-", "_")]["steps"] == 20


@pytest.mark.parametrize(
    "words", [["study", "probes", "--test", "5"], ["bench", "plan", "--plan", "5"], ["inspect", "a", "--veri"]]
)
def test_options_have_to_be_written_in_full(words: list[str], capsys: Capture) -> None:
    required = ["--checkpoint", "c", "--data", "d"] if words[0] == "study" else []
    code, _, err = run(capsys, *words, *required)
    assert code == 2 and "unrecognized arguments" in err
    assert err.startswith(f"usage: lewm {words[0]} {words[1] if words[0] != 'inspect' else ''}")  # its own, not lewm's


@pytest.mark.parametrize("name", ["bash", "zsh", "tcsh"])
def test_shell_completion(name: str, capsys: Capture) -> None:
    code, out, _ = run(capsys, "--print-completion", name)
    assert code == 0
    for command in COMMANDS:
        assert command in out


def test_numbers() -> None:
    assert plan.numbers("0.2,-3") == (0.2, -3.0)


def test_start_states_that_are_no_numbers(capsys: Capture) -> None:
    code, _, err = run(capsys, "plan", "--checkpoint", "c", "--goal", "g", "--start", "a,b")
    assert code == 2 and "'a,b' is not a list of numbers such as 0.2,0.3" in err


def test_a_negative_first_number_is_a_number(tmp_path: Path, capsys: Capture) -> None:
    """Angles are often negative."""
    code, _, err = run(capsys, "plan", "--checkpoint", str(tmp_path), "--goal", "g", "--start=-0.5,1.0")
    assert code == 1 and "config.json is missing" in err


def test_the_doctor_reports_to_a_file(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from lewm import doctor

    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python,))
    assert run(capsys, "doctor", "--json", str(tmp_path / "d.json"))[0] == 0
    assert json.loads((tmp_path / "d.json").read_text())[0]["status"] == "ok"
    monkeypatch.setattr(doctor, "CHECKS", (lambda: doctor.Finding("torch", "broken", "gone", "install it"),))
    code, out, _ = run(capsys, "doctor")
    assert code == 1 and "-> install it" in out


@pytest.fixture
def run_file(tiny_run: RunConfig, tmp_path: Path) -> Path:
    from lewm.baselines import RandomConfig
    from lewm.evaluate.evaluate import EvaluateConfig
    from lewm.evaluate.manifest import GoalSet
    from lewm.evaluate.methods import PlanConfig
    from planners import CEM

    search = CEM(candidates=8, iterations=1, elites=3, horizon=2)
    goals = (GoalSet("near", offset=8, budget=10, count=3),)
    methods = (PlanConfig("ours", planner=search), RandomConfig())
    small = replace(tiny_run, evaluate=EvaluateConfig(goals, methods, timed_plans=2))
    path = tmp_path / "run.yaml"
    path.write_text(dump(small))
    return path


def test_collect_and_inspect(run_file: Path, tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "data"
    words = ["collect", str(run_file), "--out", str(data), "--processes", "1"]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "8" in out and "two_room" in out
    assert (Store.open(data).pixels(3) == tiny_store.pixels(3)).all()
    assert run(capsys, *words)[0] == 0  # finished: found and kept
    code, out, _ = run(capsys, "inspect", str(data), "--verify", "--out", str(tmp_path / "sheet.png"))
    assert code == 0 and (tmp_path / "sheet.png").stat().st_size > 0
    code, _, err = run(capsys, *words, "--seed", "5")
    assert code == 1 and err.splitlines()[-1].startswith("lewm collect: ")


def test_train_records_first_and_says_where_the_model_is(run_file: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "r"
    words = ["train", str(run_file), "--out", str(out), "--processes", "1", "--device", "cpu", "--train.steps", "2"]
    code, text, _ = run(capsys, *words)
    assert code == 0 and text.splitlines()[-1] == f"checkpoint {out / 'checkpoint'}"
    assert lewm.load(out / "checkpoint").cost_to_go is not None
    saved = load(out / "config.yaml")
    assert saved.train.steps == 2
    facts = json.loads((out / "run.json").read_text())
    assert {"command", "git", "lewm", "torch"} <= facts.keys()
    refit = [*words, "--cost_to_go.steps", "3", "--cost-to-go-only", str(out / "checkpoint")]
    refit[refit.index("--out") + 1] = str(tmp_path / "refit")
    code, text, err = run(capsys, *refit, "--data", str(out / "data"))
    assert code == 0, err
    refitted = lewm.load(tmp_path / "refit" / "checkpoint")
    assert refitted.cost_to_go is not None and refitted.cost_to_go.config.steps == 3
    assert (
        refitted.model.state_dict()["predictor.out.bias"]
        == lewm.load(out / "checkpoint").model.state_dict()["predictor.out.bias"]
    ).all()


@pytest.mark.parametrize("key", ["train.learning_rate", "cost_to_go.learning_rate"])
def test_a_training_that_is_refused_leaves_what_is_said_of_the_one_before(
    key: str, run_file: Path, tiny_store: Store, tmp_path: Path, capsys: Capture
) -> None:
    words = ["train", str(run_file), "--out", str(tmp_path / "o"), "--data", str(tiny_store.path), "--device", "cpu"]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    said = {name: (tmp_path / "o" / name).read_text() for name in ("config.yaml", "run.json")}
    code, _, err = run(capsys, *words, f"--{key}", "0.5")
    assert code == 1 and "choose another --out" in err
    assert said == {name: (tmp_path / "o" / name).read_text() for name in said}
    code, _, err = run(capsys, *words, "--evaluate.batch", "3")  # what no training depends on is taken over
    assert code == 0 and load(tmp_path / "o" / "config.yaml").evaluate.batch == 3


def test_an_evaluation_that_is_refused_leaves_what_is_said_of_the_one_before(
    run_file: Path, tiny_store: Store, tiny_checkpoint_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["evaluate", str(run_file), "--checkpoint", str(tiny_checkpoint_path), "--data", str(tiny_store.path)]
    words += ["--out", str(tmp_path / "e"), "--device", "cpu"]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    said = (tmp_path / "e" / "evaluation" / "config.yaml").read_text()
    code, _, err = run(capsys, *words, "--evaluate.methods.0.history", "5")
    assert code == 1 and "history is 5" in err
    assert said == (tmp_path / "e" / "evaluation" / "config.yaml").read_text()


def test_a_cost_to_go_of_no_steps_is_refused(
    run_file: Path, tiny_store: Store, tiny_checkpoint_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["train", str(run_file), "--out", str(tmp_path / "o"), "--data", str(tiny_store.path), "--device", "cpu"]
    words += ["--cost-to-go-only", str(tiny_checkpoint_path), "--cost_to_go.steps", "0"]
    code, _, err = run(capsys, *words)
    assert (code, err) == (1, "lewm train: cost_to_go.steps is 0, which fits none: add --cost_to_go.steps 4000\n")
    assert not (tmp_path / "o").exists()


def test_evaluate_from_a_store_then_from_its_manifest(
    run_file: Path, tiny_store: Store, tiny_checkpoint_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, rows = tmp_path / "e", tmp_path / "rows.json"
    common = ["evaluate", str(run_file), "--checkpoint", str(tiny_checkpoint_path), "--device", "cpu"]
    code, text, err = run(capsys, *common, "--data", str(tiny_store.path), "--out", str(out), "--json", str(rows))
    assert code == 0, err
    assert "ours" in text and "random" in text and f"results {out / 'results.json'}" in text
    first = json.loads((out / "results.json").read_text())
    assert [r["method"] for r in first] == ["ours", "random", "oracle"]  # a table without its ceiling is completed
    assert json.loads(rows.read_text()) == first
    assert (out / "report.html").stat().st_size > 0
    manifest = str(out / "evaluation" / "manifest_near.json")
    code, _, err = run(capsys, *common, "--manifest", manifest, "--out", str(tmp_path / "again"))
    assert code == 0, err
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert [(r["n"], r["successes"]) for r in again] == [(r["n"], r["successes"]) for r in first]


def test_evaluate_needs_goals(run_file: Path, tiny_checkpoint_path: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["evaluate", str(run_file), "--checkpoint", str(tiny_checkpoint_path), "--out", str(tmp_path / "o")]
    code, _, err = run(capsys, *words)
    assert code == 1 and "evaluate needs goals: pass --data" in err and err.count("\n") == 1


def test_evaluate_in_shifted_worlds(
    run_file: Path, tiny_store: Store, tiny_checkpoint_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "e"
    common = [
        "evaluate",
        str(run_file),
        "--checkpoint",
        str(tiny_checkpoint_path),
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    code, _, err = run(capsys, *common, "--data", str(tiny_store.path), "--shift", "speed", "picture")
    assert code == 0, err
    rows = json.loads((out / "results.json").read_text())
    assert {r["goals"] for r in rows} == {"near", "near_speed", "near_picture"}
    plain, slow, repainted = (
        json.loads((out / "evaluation" / f"manifest_{name}.json").read_text())["problems"]
        for name in ("near", "near_speed", "near_picture")
    )
    assert [p["start_state"] for p in plain] == [p["start_state"] for p in slow]
    assert not plain[0]["variation"] and slow[0]["variation"].keys() == {"speed"}
    assert {"floor", "wall", "agent"} <= repainted[0]["variation"].keys()
    code, _, err = run(capsys, *common, "--data", str(tiny_store.path), "--shift", "sped")
    assert code == 1 and "shift names 'sped', did you mean 'speed'?" in err
    manifest = str(out / "evaluation" / "manifest_near.json")
    code, _, err = run(capsys, *common, "--manifest", manifest, "--shift")
    assert code == 1 and "--shift draws worlds for pairs it draws itself" in err and err.count("\n") == 1
