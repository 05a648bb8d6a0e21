"""The tables in the README and in docs/ that are made from committed rows say what those rows say."""

from pathlib import Path

import pytest

from lewm import pages
from lewm.cli import main

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(page for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if pages.names(page.read_text()))
SHOWN = {name for page in PAGES for name in pages.names(page.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_shows_the_committed_rows(page: Path) -> None:
    text = page.read_text()
    for name in pages.names(text):
        shown = text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
        assert shown == pages.table_of(RESULTS, name), (
            f"write it again: lewm leaderboard --pages {page.relative_to(ROOT)}"
        )


def test_every_committed_table_is_shown() -> None:
    """Of what is measured by success, every file that a table can be made of."""
    committed = {path.stem for folder in (RESULTS, RESULTS / "compare") for path in folder.glob("*.json")}
    assert committed <= SHOWN


def test_pages_are_filled_and_what_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "page.md", pages.table_of(RESULTS, "two_room_cpu")
    page.write_text("before\n<!-- two_room_cpu -->\nold\n<!-- /two_room_cpu -->\nafter\n")
    monkeypatch.chdir(ROOT)
    given = ["leaderboard", "docs/results/two_room_cpu.json", "--out", str(tmp_path / "all.html"), "--pages", str(page)]
    main(given)
    assert page.read_text() == f"before\n<!-- two_room_cpu -->\n{table}\n<!-- /two_room_cpu -->\nafter\n"
    assert f"tables {page}" in capsys.readouterr().out
    main(given)
    assert f"tables {page}" not in capsys.readouterr().out, "nothing has changed"
    wrong = {
        "<!-- two_room_cpu -->\nopen": r"page.md: <!-- two_room_cpu --> has no <!-- /two_room_cpu -->",
        "<!-- nothing -->\n\n<!-- /nothing -->": r"there are 0 files nothing.json below docs/results",
        "<!-- data_cpu -->\n\n<!-- /data_cpu -->": "nothing makes a table of bench/data_cpu.json",
    }
    for text, said in wrong.items():
        page.write_text(text)
        with pytest.raises(ValueError, match=said):
            pages.fill([page], Path("docs/results"))
        assert page.read_text() == text
