"""One plan for problems that start warm and problems that start as in their first plan."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from planners import Plan, WarmStart

Search = Callable[[np.ndarray, WarmStart | None], Plan]
"""(problems, start) -> their plan; the problems by number, as they stand in `starts`."""


def search_each(search: Search, starts: Sequence[WarmStart | None]) -> Plan:
    """The plan of all problems of `starts`, each from its own; None for the planner's first search.

    A search has a start for all of its problems or for none, so that a mixture takes two.
    """
    warm, cold = (np.flatnonzero([(start is None) == none for start in starts]) for none in (False, True))
    plans = []
    if len(warm):
        plans.append(search(warm, WarmStart.join([start for start in starts if start is not None])))
    if len(cold):
        plans.append(search(cold, None))
    if len(plans) == 1:
        return plans[0]
    back = torch.from_numpy(np.argsort(np.concatenate([warm, cold]))).to(plans[0].action_BHA.device)
    parts = {field.name: [getattr(plan, field.name) for plan in plans] for field in fields(Plan)}
    return replace(plans[0], **{name: torch.cat(each)[back] for name, each in parts.items() if each[0] is not None})
