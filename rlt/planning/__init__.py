"""Estimates what a recipe needs on given GPUs: memory, hours, money, disk. Nothing is loaded or run.

For each step: memory of one GPU while sampling, scoring and updating; FLOPs and bytes moved; bytes left on disk.
docs/planning.md has the formulas and compares them with published costs.
"""

from rlt.planning.options import PlanConfig
from rlt.planning.table import Plan, plan

__all__ = ["Plan", "PlanConfig", "plan"]
