"""`lewm bench plan --model`: both ways on one model, its file, its table; no time is asserted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lewm.bench import token_grids as module
from lewm.bench.token_grids import MODELS, bench_token_grids, costs, difference, table, token_model
from lewm.cli import main
from lewm.nets.predictors import ACConfig, DinoWMConfig, RotaryConfig
from planners import CEM


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATENT_DIM", 8)
    monkeypatch.setattr(module, "SEARCH", CEM(candidates=4, iterations=1, elites=2, horizon=3))
    small = {
        "ac": ACConfig(width=12, layers=2, heads=2, mlp_ratio=1),
        "rotary": RotaryConfig(width=12, layers=1, heads=2, positions="axial"),
        "dino_wm": DinoWMConfig(layers=1, heads=2, head_dim=4, mlp_hidden=8),
    }
    assert small.keys() == MODELS.keys()
    monkeypatch.setattr(module, "MODELS", small)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_for_every_history(name: str) -> None:
    rows = bench_token_grids(name, 4, 1, 2, "cpu")
    assert [(r.model, r.tokens, r.history, r.horizon) for r in rows] == [(name, 4, 1, 3), (name, 4, 2, 3)]
    for row in rows:
        assert row.max_cost_difference < 1e-4 and row.ratio == row.plain_ms_p50 / row.cached_ms_p50
        assert 0 < row.cached_gflop < row.plain_gflop
    lines = table(rows).splitlines()
    assert len(lines) == 5 and all(line.startswith(name) for line in lines[1:3]) and "1 thread(s)" in lines[-1]


def test_rows_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "rows.json"
    main(["bench", "plan", "--model", "ac", "--tokens", "9", "--plans", "1", "--device", "cpu", "--json", str(path)])
    assert [row["tokens"] for row in json.loads(path.read_text())] == [9, 9]
    assert "costs differ" in capsys.readouterr().out


def test_two_models_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = token_model("ac", 4, torch.device("cpu"))
    cached, plain = costs(model, 1)
    assert difference(model, cached, plain) < 1e-4
    with torch.no_grad():
        model.predictor.out.weight.mul_(-1)  # type: ignore[union-attr, operator]
    monkeypatch.setattr(module, "costs", lambda *_: (cached, replace(plain)))
    with pytest.raises(ValueError, match="ac: the cached and the plain rollout disagree on the cost of a candidate by"):
        module.time_model(model, "ac", 1, 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "adaln"], "no such predictor of token grids; there are ac, rotary, dino_wm"),
        (["--model", "ac", "--tokens", "8"], "8 tokens per frame are no square grid"),
        (["--model", "ac", "--plans", "0"], "--plans is 0"),
        (["--tokens", "4"], "--tokens 4 is for --model"),
        (["--model", "ac", "--checkpoint", "x"], "leave --checkpoint out"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(
    words: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "plan", *words, "--device", "cpu"])
    assert expected in capsys.readouterr().err
