"""`lewm compare objectives`: every row of the table on the same recordings, with the same network and budget."""

from lewm.compare.rows import CompareRow, CurvePoint, Success, collapse_step, load_rows
from lewm.compare.run import ADAPTED, compare_objectives, compare_one, measure_latent, recipe, time_again
from lewm.compare.summary import Summary, summarise, table

__all__ = [
    "ADAPTED",
    "CompareRow",
    "CurvePoint",
    "Success",
    "Summary",
    "collapse_step",
    "compare_objectives",
    "compare_one",
    "load_rows",
    "measure_latent",
    "recipe",
    "summarise",
    "table",
    "time_again",
]
