"""What a recipe needs on given GPUs, from shapes alone: memory, hours, money, disk. Nothing is loaded, nothing is run.

For each step: a GPU's memory at each moment (sampling, scoring, updating), FLOPs and bytes moved, what stays on disk.
The formulas and their error against what is known stand in docs/planning.md.
"""

from rlt.planning.options import PlanConfig
from rlt.planning.table import Plan, plan

__all__ = ["Plan", "PlanConfig", "plan"]
