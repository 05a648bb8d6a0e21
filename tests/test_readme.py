"""The README's Python runs, its paths exist, its tables are the committed results."""

import re
from pathlib import Path

import pytest
import yaml

from lewm.evaluate import leaderboard

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tiny_checkpoint_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "runs/demo/checkpoint" in example
    exec(example.replace("runs/demo/checkpoint", str(tiny_checkpoint_path)), {})
    assert re.fullmatch(r"reached: (True|False) after \d+ steps\n", capsys.readouterr().out)


def test_every_path_it_names_exists() -> None:
    for path in re.findall(r"`((?:lewm|envs|planners|configs|tests|docs)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(((?!http)[\w/.-]+)\)", README):
        assert (ROOT / path).exists(), path


def test_its_run_for_a_task_of_your_own_is_the_one_that_is_tested() -> None:
    pages = (README, (ROOT / "docs" / "own_task.md").read_text())
    shown, tested = (yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]) for page in pages)
    assert shown == tested


def test_the_constraints_and_the_project_name_the_same_packages() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    project = (ROOT / "pyproject.toml").read_text()
    unknown = {name for name in pinned if not re.search(rf'"{re.escape(name)}\W', project, re.IGNORECASE)}
    assert not unknown, f"constraints.txt pins {sorted(unknown)}, which pyproject.toml does not ask for"


def test_the_page_of_all_results_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = leaderboard.markdown(leaderboard.tables(leaderboard.find_results([Path("docs/results")])[0], split=True))
    page = (ROOT / "docs" / "results" / "tables.md").read_text()
    assert page == shown + "\n", (
        "write it again: lewm leaderboard docs/results --split --markdown docs/results/tables.md"
    )
