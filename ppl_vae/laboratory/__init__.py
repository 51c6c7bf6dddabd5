"""The laboratory: grids of trainings, compared with error bars."""

from ppl_vae.laboratory.cells import Evaluation, Record
from ppl_vae.laboratory.compare import compare, compare_cells
from ppl_vae.laboratory.comparison import Comparison, Row
from ppl_vae.laboratory.engine import Engine, Local
from ppl_vae.laboratory.grid import Cell, expand, label_of
from ppl_vae.laboratory.point import Contender, PointComparison, compare_at
from ppl_vae.laboratory.rendering import Table, as_latex, as_markdown, as_text
from ppl_vae.laboratory.statistics import Paired, holm, mean_of, paired
from ppl_vae.laboratory.tables import as_csv, table_of

__all__ = [
    "Cell",
    "Comparison",
    "Contender",
    "Engine",
    "Evaluation",
    "Local",
    "Paired",
    "PointComparison",
    "Record",
    "Row",
    "Table",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_text",
    "compare",
    "compare_at",
    "compare_cells",
    "expand",
    "holm",
    "label_of",
    "mean_of",
    "paired",
    "table_of",
]
