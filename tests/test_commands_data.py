"""The commands on recordings, from the command line: what they write, what they say, how they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lewm
from lewm import cli
from lewm.commands.data import mapping
from lewm.data.audit import AUDITS
from lewm.data.exporters import EXPORTERS
from lewm.data.importers import IMPORTERS
from lewm.data.store import Store

ROOT = Path(lewm.__file__).parent.parent
Capture = pytest.CaptureFixture[str]
COMMANDS = ("import", "export", "merge", "inspect", "preview", "audit")


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    try:
        cli.main([str(word) for word in words])
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Three episodes as .npz files; the second one has a NaN action."""
    rng, folder = np.random.default_rng(0), tmp_path / "archives"
    folder.mkdir()
    for number in range(3):
        actions = rng.normal(size=(6, 2)).astype(np.float32)
        actions[3] = np.nan if number == 1 else 0
        frames = {name: rng.integers(0, 256, (7, 20, 20, 3), np.uint8) for name in ("pixels", "wrist")}
        states = {"state": rng.normal(size=(7, 2)), "force": rng.normal(size=(6, 3))}
        np.savez(folder / f"{number}.npz", action=actions, **frames, **states)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str, capsys: Capture) -> None:
    assert f"\n    {command} " in run(capsys, "--help")[1]
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and out.startswith(f"usage: lewm {command} ")


@pytest.mark.parametrize(
    "command, title, table",
    [("import", "formats", IMPORTERS), ("export", "formats", EXPORTERS), ("audit", "checks", AUDITS)],
)
def test_the_help_lists_the_table(command: str, title: str, table: dict[str, object], capsys: Capture) -> None:
    lines = run(capsys, command, "--help")[1].split(f"\n{title}:\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == list(table) and all(len(line.split()) > 2 for line in lines)


def test_the_tables_are_imported_only_for_help() -> None:
    code = "import sys\nfrom lewm.cli import build_parser\nbuild_parser()\n"
    code += "print([m for m in sys.modules if m.startswith('lewm.data') or m in ('numpy', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_import_takes_what_is_asked_for(archives: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "data"
    words = ["--camera", "wrist", "pixels", "--state", "state", "--column", "force", "--size", 16, "--codec", "png"]
    words += ["--task", "two_room", "--settings", "{size: 16}", "--control-dt", 0.2, "--broken", "skip"]
    words += ["--action-low", -4, -4, "--action-high", 4, 4, "--state-names", "x", "turn", "--angle-names", "turn"]
    code, text, err = run(capsys, "import", archives, "--out", out, *words, "--shard-episodes", 1)
    assert code == 0, err
    meta, store = Store.open(out, verify=True).meta, Store.open(out)
    assert (meta.task, meta.settings, meta.codec, meta.control_dt) == ("two_room", {"size": 16}, "png", 0.2)
    assert meta.cameras == ("wrist", "pixels") and meta.frame == (16, 16, 6) and len(meta.shards) == 2
    assert meta.state_names == ("x", "turn") and meta.angle_names == ("turn",) and meta.action_low == (-4, -4)
    assert [column.name for column in meta.columns] == ["force"]
    with np.load(archives / "2.npz") as archive:
        assert_array_equal(store.actions(1), archive["action"])
        assert_allclose(store.column("force", 1), archive["force"], rtol=1e-6)
    assert "episodes   2, 6 actions per episode" in text
    (left_out,) = [line for line in text.splitlines() if line.startswith("left out")]
    assert "episode 1" in left_out and "NaN" in left_out
    assert err.splitlines()[-1].startswith("import") and "3/3 episodes" in err


def test_import_of_the_first_episodes_finds_format_and_bounds(archives: Path, tmp_path: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "import", archives, "--out", tmp_path / "d", "--control-dt", 0.1, "--episodes", 1)
    assert code == 0, err
    store = Store.open(tmp_path / "d")
    assert store.num_episodes == 1 and store.meta.codec == "raw" and store.meta.task == "imported"
    assert store.meta.action_high == tuple(map(float, store.actions(0).max(0)))


@pytest.mark.parametrize(
    "words, code, expected",
    [
        (["--control-dt", "0.1"], 1, "leave such episodes out with --broken skip"),
        (["--episodes", "1"], 1, "give --control-dt SECONDS"),
        (["--format", "tape"], 1, "format is 'tape'; there are npz"),
        (["--camera", "top"], 1, "has no pictures 'top'"),
        (["--size", "4"], 1, "size is 4, it must be at least 8 pixels"),
        (["--broken", "mend"], 2, "invalid choice: 'mend'"),
        (["--settings", "size"], 2, "'size' is not a mapping such as '{size: 64}'"),
        (["--settings", "{size"], 2, "'{size' is not YAML"),
    ],
)
def test_a_refused_import_is_one_sentence_and_leaves_nothing(
    words: list[str], code: int, expected: str, archives: Path, tmp_path: Path, capsys: Capture
) -> None:
    got, out, err = run(capsys, "import", archives, "--out", tmp_path / "data", *words)
    last = err.splitlines()[-1]
    assert (got, out) == (code, "") and expected in last and last.startswith("lewm import: ") and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives"]


def test_mapping() -> None:
    assert mapping("{size: 64, renderer: painter}") == {"size": 64, "renderer": "painter"}


@pytest.mark.parametrize("name, words", [("hdf5", []), ("videos", ["--codec", "lossless"])])
def test_export_and_import_again(
    name: str, words: list[str], tiny_store: Store, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / ("recording" + (EXPORTERS[name].suffixes or ("",))[0])
    code, out, err = run(capsys, "export", tiny_store.path, "--out", target, "--format", name, "--episodes", 3, *words)
    assert code == 0 and out == f"{name} {target}\n", err
    assert err.splitlines()[-1].startswith("export") and "3/3 episodes" in err
    code, out, err = run(capsys, "import", target, "--out", tmp_path / "back", "--control-dt", 0.1)
    assert code == 0, err
    back = Store.open(tmp_path / "back")
    assert back.num_episodes == 3
    for episode in range(3):
        assert_array_equal(back.pixels(episode), tiny_store.pixels(episode))
        assert_array_equal(back.actions(episode), tiny_store.actions(episode))
    assert run(capsys, "export", tiny_store.path, "--out", target, "--format", name)[0] == 1


def test_a_refused_export_is_one_sentence(tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    words = ["export", tiny_store.path, "--out", tmp_path / "x"]
    code, _, err = run(capsys, *words, "--format", "tape")
    assert code == 1 and err == f"lewm export: format is 'tape'; there are {', '.join(EXPORTERS)}\n"
    code, _, err = run(capsys, *words, "--format", "videos", "--codec", "divx")
    assert code == 1 and "codec is 'divx'" in err and err.count("\n") == 1
    assert run(capsys, *words)[0] == 2
    assert not (tmp_path / "x").exists()


def test_merge_inspect_and_audit(tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    half, whole = tmp_path / "half", tmp_path / "whole"
    assert run(capsys, "export", tiny_store.path, "--out", tmp_path / "e.h5", "--format", "hdf5")[0] == 0
    words = ["--task", "two_room", "--settings", json.dumps(tiny_store.meta.settings), "--control-dt", 0.1]
    words += ["--action-low", -1, -1, "--action-high", 1, 1, "--state-names", "x", "y", "--codec", "png"]
    assert run(capsys, "import", tmp_path / "e.h5", "--out", half, *words)[0] == 0
    code, _, err = run(capsys, "merge", tiny_store.path, half, "--out", whole)
    assert code == 1 and "choose one with --codec" in err and err.count("\n") == 1
    code, out, err = run(capsys, "merge", tiny_store.path, half, "--out", whole, "--codec", "raw")
    assert code == 0, err
    assert "episodes   16, 40 actions" in out and "merge of " in out and "16/16 episodes" in err
    code, out, _ = run(capsys, "inspect", whole, "--verify", "--out", tmp_path / "sheet.png")
    assert code == 0 and "episodes   16" in out and (tmp_path / "sheet.png").stat().st_size > 0
    file = tmp_path / "audit.json"
    code, out, _ = run(capsys, "audit", whole, "--json", file)
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    assert code == 1 and "verdict bad" in out
    assert rows.keys() == AUDITS.keys() and rows["lengths"].keys() == {"name", "verdict", "numbers", "found", "do"}
    assert rows["duplicates"]["verdict"] == "bad" and rows["duplicates"]["numbers"] == {"episodes": 8}


def test_an_audit_without_anything_bad_exits_with_0(tiny_store: Store, capsys: Capture) -> None:
    code, out, err = run(capsys, "audit", tiny_store.path, "--episodes", 4, "--steps", 10)
    assert code == 0 and "pictures of 40 of their 320 steps (4 episodes)" in out and "4/4 clips" in err
    code, out, _ = run(capsys, "audit", tiny_store.path, "--all")
    assert code == 0 and "pictures of 320 of their 320 steps (8 episodes)" in out
    code, _, err = run(capsys, "audit", tiny_store.path, "--steps", 0)
    assert code == 1 and err == "lewm audit: steps is 0, it must be at least 1\n"


def test_preview_writes_what_is_named(tiny_store: Store, tmp_path: Path, capsys: Capture) -> None:
    video, sheet = tmp_path / "v.mp4", tmp_path / "s.png"
    code, out, _ = run(capsys, "preview", tiny_store.path, "--episodes", 2, "--video", video, "--size", 32)
    assert code == 0 and out == f"video {video}\n" and video.stat().st_size > 0
    code, out, _ = run(capsys, "preview", tiny_store.path, "--sheet", sheet, "--frames", 4)
    assert code == 0 and out == f"contact sheet {sheet}\n" and sheet.stat().st_size > 0
    code, _, err = run(capsys, "preview", tiny_store.path, "--episodes", 99, "--video", video)
    assert code == 1 and err.startswith("lewm preview: episode 99 is not in") and err.count("\n") == 1


def test_preview_writes_both_beside_the_data(archives: Path, tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "d"
    run(capsys, "import", archives, "--out", data, "--control-dt", 0.1, "--broken", "skip")
    code, out, err = run(capsys, "preview", data)
    assert code == 0, err
    assert {"preview.png", "preview.mp4"} <= {path.name for path in data.iterdir()} and str(data) in out
    assert Store.open(data, verify=True).num_episodes == 2
