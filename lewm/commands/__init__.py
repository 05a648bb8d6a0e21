"""What every command of `lewm` does, and its options; torch is imported when a command runs."""

from lewm.commands import (
    baselines,
    bench,
    compare,
    data,
    evaluation,
    expert,
    plan,
    pretrain,
    story,
    study,
)

__all__ = ["baselines", "bench", "compare", "data", "evaluation", "expert", "plan", "pretrain", "story", "study"]
