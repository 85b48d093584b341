"""The recipe that `rlt init` writes: model, lengths and batches chosen for data and hardware."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import Field

from rlt.config import Config, parse_yaml
from rlt.planning import Plan, PlanConfig, plan
from rlt.planning.machine import GIB
from rlt.planning.shapes import load_shape
from rlt.recipe import Recipe, build_recipe
from rlt.types import JsonRow, Problem

MODELS = tuple(f"Qwen/Qwen2.5-{size}-Instruct" for size in ("7B", "3B", "1.5B", "0.5B"))
LOOKED_AT = 1000  # rows from which columns, lengths and the grader are guessed
# Low for English (about 4), right for formulas: lengths are overestimated rather than underestimated.
CHARACTERS_PER_TOKEN = 3.0
QUESTIONS, SAMPLES = 8, 16  # per RL step: half of the paper's questions, a quarter of its explanations per question


class InitConfig(Config):
    """Input of `rlt init`, and choices that you make for it."""

    data: str
    """Your problems: a JSONL, JSON, Parquet or CSV file, given without a flag."""
    output: Path | None = None
    """Recipe to write; null: named after the data, in this folder."""
    columns: dict[str, str] = {}
    """Your column names, such as `--columns.question prompt`; the rest are guessed."""
    model: str | None = None
    """Folder or hub name of the model for teacher and student; null: the largest Qwen2.5 that fits and is fast enough."""
    gpu: str | None = None
    """GPU to plan for, by its name in `rlt plan`; null: this machine's, or `rtx4090-24gb` if it has none."""
    count: int | None = Field(None, ge=1)
    """Number of GPUs to plan for; null: this machine's."""
    hours: float = Field(24.0, gt=0)
    """Maximum number of hours that the planned run may take."""


@dataclass(frozen=True)
class Data:
    rows: int
    invalid: int
    columns: dict[str, str]
    problems: Sequence[Problem]

    def longest(self, column: str) -> int:
        """Tokens of a column at its 95th percentile, estimated from characters."""
        lengths = sorted(len(getattr(problem, column) or "") for problem in self.problems)
        return math.ceil(lengths[int(0.95 * (len(lengths) - 1))] / CHARACTERS_PER_TOKEN)

    def mean(self, column: str) -> int:
        total = sum(len(getattr(problem, column) or "") for problem in self.problems)
        return max(1, math.ceil(total / len(self.problems) / CHARACTERS_PER_TOKEN))

    def has(self, column: str) -> bool:
        return all(getattr(problem, column) is not None for problem in self.problems)


@dataclass(frozen=True)
class Choice:
    model: str
    lora: bool
    planned: Plan | None


@dataclass(frozen=True)
class Draft:
    config: InitConfig
    data: Data
    name: str
    output: Path
    gpu: str | None
    count: int

    @property
    def held_out(self) -> int:
        return max(1, min(200, self.data.rows // 10))

    @property
    def explained(self) -> bool:
        return self.data.has("explanation")

    @property
    def task(self) -> str | None:
        """The grader of the answers; None if there are no answers that can be graded."""
        if not self.data.has("answer"):
            return None
        answers = [str(problem.answer).strip() for problem in self.data.problems]
        if all(re.fullmatch(r"\(?[A-J]\)?", answer) for answer in answers):
            return "multiple_choice"
        like_math = [answer for answer in answers if re.search(r"\d|\\", answer) and len(answer) < 100]
        return "math" if len(like_math) >= 0.8 * len(answers) else None

    @property
    def most_tokens(self) -> int:
        """Tokens of an explanation: 1.5 times the 95th percentile of the given ones, in steps of 128."""
        longest, most = (1.5 * self.data.longest("explanation"), 8192) if self.explained else (0, 2048)
        most = min(most, 256) if self.gpu is None else most
        most = min(most, (self.context or 2 * most) // 2)
        return min(most, max(128, math.ceil(longest / 128) * 128)) if self.explained else most

    @property
    def text_tokens(self) -> int:
        """Tokens of a training text: question, explanation and solution, with room for the system prompt."""
        rest = self.data.longest("question") + self.data.longest("solution") + 300
        return min(math.ceil((rest + self.most_tokens) / 256) * 256, self.context or 10**9)

    @property
    def response_tokens(self) -> int:
        """Tokens of a student's response (explanation and solution), leaving room for the question."""
        wanted = self.most_tokens + math.ceil(self.data.longest("solution") / 64) * 64 + 64
        return min(wanted, (self.context or 10**9) * 3 // 4)

    @property
    def context(self) -> int | None:
        """Context of the given model in tokens; None for MODELS, whose contexts are long enough."""
        return load_shape(self.config.model).context if self.config.model else None

    def choose(self) -> Choice:
        """The largest model whose plan fits, with all weights or LoRA; if none does, the smallest with LoRA."""
        models = (self.config.model,) if self.config.model else MODELS
        if self.gpu is None:
            return Choice(models[0], False, None)
        lora = (False, True) if importlib.util.find_spec("peft") else (False,)
        tried = [Choice(model, with_lora, None) for model in models for with_lora in lora]
        for choice in tried:
            planned = self.planned(choice)
            if planned.fits_memory and planned.hours <= self.config.hours:
                return Choice(choice.model, choice.lora, planned)
        return Choice(tried[-1].model, tried[-1].lora, self.planned(tried[-1]))

    def planned(self, choice: Choice) -> Plan:
        options = PlanConfig(
            gpu=str(self.gpu),
            count=self.count,
            rows=self.data.rows,
            question_tokens=self.data.mean("question") + 150,
            solution_tokens=self.data.mean("solution"),
            explanation_tokens=max(1, self.most_tokens // 2),
            trace_tokens=self.data.mean("explanation") if self.explained else max(1, self.most_tokens // 2),
            response_tokens=max(1, self.most_tokens // 2) + self.data.mean("solution"),
        )
        return plan(self.recipe(choice), options)

    def recipe(self, choice: Choice) -> Recipe:
        """The checked recipe that `text` describes."""
        return build_recipe(cast(JsonRow, parse_yaml(self.text(choice))), str(self.output))

    def text(self, choice: Choice) -> str:
        """The recipe as YAML."""
        warm = self._explained_by_model(choice)
        source = '{path: "@closed", on_invalid: skip}' if warm else f"{{{self._rest}}}"
        judged, report = self._students(choice)
        parts = [
            self._head(choice),
            warm,
            self._supervised(choice, source),
            self._reinforced(choice),
            judged,
            report,
            [""],
        ]
        return "\n".join(line for part in parts for line in part)

    @property
    def _small(self) -> bool:
        return self.gpu is None

    @property
    def _rest(self) -> str:
        return f"{self._source}, skip: {self.held_out}"

    @property
    def _launch(self) -> str:
        return "\n  launch: fsdp2" if self.count > 1 else ""

    @property
    def _engine(self) -> list[str]:
        return ["  engine: vllm"] if not self._small and importlib.util.find_spec("vllm") else []

    def _trainer(self, choice: Choice) -> str:
        rate = "1.0e-4" if choice.lora else "1.0e-5"
        return (
            f"{{num_train_epochs: 2, per_device_train_batch_size: 1, gradient_accumulation_steps: {max(1, 16 // self.count)}, "
            f"learning_rate: {rate}}}"
        )

    def _head(self, choice: Choice) -> list[str]:
        lines = [
            f"# Written by `rlt init {self.config.data}`. Settings without a source are starting points, not results.",
            f"name: {self.name}",
            f"description: A teacher for {Path(self.config.data).name}",
            f"needs_gpu: {'false' if self._small else 'true'}",
            "",
        ]
        if choice.lora:
            lora = "{dtype: bfloat16, peft: {r: 32, lora_alpha: 64, target_modules: all-linear}}"
            lines += ["defaults:", f"  warmup: &lora {lora}", "  distill: *lora", "  train: *lora", ""]
        elif not self._small:
            # Trained weights are float32; only what generates or scores takes two bytes.
            half = "{dtype: bfloat16}"
            lines += ["defaults:", f"  collect: {half}", f"  score: {half}", f"  evaluate: {half}", ""]
        return [
            *lines,
            f"# The first {self.held_out} rows are held out for evaluation.",
            f"heldout: {{stage: problems, data: {{{self._source}, limit: {self.held_out}}}, count: {self.held_out}}}",
            "",
        ]

    def _explained_by_model(self, choice: Choice) -> list[str]:
        if self.explained:
            return []
        return [
            "# The data has no explanations to learn from, so the model writes the first ones itself, from question and",
            "# solution. Only those that close their tag are kept: a truncated one would be learned as if it were complete.",
            "self-explained:",
            "  stage: collect",
            f"  model: {choice.model}",
            f"  data: {{{self._rest}{self._limit(2000)}}}",
            f"  max_tokens: {self.most_tokens}",
            *self._engine,
            'closed: {stage: select, data: "@self-explained", keep: closed}',
            "",
        ]

    def _supervised(self, choice: Choice, source: str) -> list[str]:
        lines = []
        for step, stage, why in (
            ("warmup", "", "# The teacher learns to write an explanation from question and solution."),
            ("student", "\n  stage: distill", "# The student in the reward learns the format from the same texts."),
        ):
            lines += [
                why,
                f"{step}:{stage}",
                f"  model: {choice.model}",
                f"  data: {source}",
                f"  max_length: {self.text_tokens}{self._launch}",
                f"  trainer: {self._trainer(choice)}",
                "",
            ]
        return lines

    def _reinforced(self, choice: Choice) -> list[str]:
        samples = 8 if self._small else SAMPLES
        micro = samples if self._small else 2
        accumulate = max(1, math.ceil(QUESTIONS * samples / (micro * self.count)))
        while micro * self.count * accumulate % samples:  # groups of explanations of one question are never split
            accumulate += 1
        steps = max(1, min(30 if self._small else 125, 4 * (self.data.rows - self.held_out) // QUESTIONS))
        why = "the reference is the model without its adapter" if choice.lora else "no second copy of the weights"
        return [
            f"# Teacher RL: {micro * self.count * accumulate // samples} questions with {samples} explanations each per step.",
            "train:",
            '  model: "@warmup"',
            '  student: "@student"',
            *([] if self._small else ["  student_placement: offload"]),
            f"  data: {{{self._rest}}}{self._launch}",
            "  trainer:",
            f"    max_steps: {steps}",
            f"    learning_rate: {'1.0e-5' if choice.lora or self._small else '1.0e-6'}",
            f"    num_generations: {samples}",
            f"    per_device_train_batch_size: {micro}",
            f"    gradient_accumulation_steps: {accumulate}",
            f"    max_completion_length: {self.most_tokens}",
            f"    beta: {'0.04' if choice.lora else '0.0'} # {why}",
            "    sync_ref_model: false",
            "",
            "# Reward of the teacher's explanations of held-out problems before and after RL, with placebos.",
            "explain-heldout:",
            "  stage: collect",
            '  each: {before: {model: "@warmup"}, after: {model: "@train"}}',
            '  data: "@heldout"',
            f"  max_tokens: {self.most_tokens}",
            *self._engine,
            "score-heldout:",
            "  stage: score",
            '  each: {before: {teacher: "@warmup"}, after: {teacher: "@train"}}',
            '  student: "@student"',
            '  data: "@explain-heldout/{each}"',
            "  placebos: true",
            "",
        ]

    def _students(self, choice: Choice) -> tuple[list[str], list[str]]:
        """The steps that evaluate students, if answers can be graded, and the report."""
        report = ["report:", "  teachers: [before, after]", "  explained: explain-heldout", "  scored: score-heldout",
                  "  trained: train"]  # fmt: skip
        if self.task is None:
            return [], report
        lines = [
            "# Students that learned from the teacher's explanations before and after RL solve the held-out problems alone.",
            "collect:",
            '  each: {warmup: {model: "@warmup"}, rlt: {model: "@train"}}',
            f"  data: {{{self._rest}{self._limit(4000)}}}",
            f"  max_tokens: {self.most_tokens}",
            *self._engine,
            "distill:",
            '  each: "@collect"',
            f"  model: {choice.model}",
            '  data: {path: "@collect/{each}", on_invalid: skip}',
            f"  max_length: {self.text_tokens}{self._launch}",
            f"  trainer: {self._trainer(choice)}",
            "evaluate:",
            '  each: "@distill"',
            '  model: "@distill/{each}"',
            '  benchmark: "@heldout"',
            f"  task: {self.task}",
            f"  max_tokens: {self.response_tokens}",
            *self._engine,
            "  samples: 4",
            "  temperature: 0.7",
            "",
        ]
        arms = "  arms: {warmup: the teacher's explanations before RL, rlt: the teacher's explanations after RL}"
        return lines, [*report, arms, "  sampled: evaluate", "  headline: [rlt, warmup]"]

    @property
    def _source(self) -> str:
        path = os.path.relpath(self.config.data, self.output.parent)
        path = str(Path(self.config.data).resolve()) if path.startswith("..") else f"./{path}"  # as the folder may move
        columns = ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in self.data.columns.items())
        mapped = f", columns: {{{columns}}}" if columns else ""
        skips = ", on_invalid: skip" if self.data.invalid else ""
        return f"path: {_quoted(path)}{mapped}{skips}"

    def _limit(self, most: int) -> str:
        return f", limit: {most}" if self.data.rows - self.held_out > most else ""

    def said(self, choice: Choice, hardware: str) -> list[str]:
        """What was chosen and why, in nine lines."""
        data, columns = self.data, self.data.columns
        mapped = ", ".join(f"{ours} <- {theirs}" for ours, theirs in columns.items())
        invalid = f", {data.invalid} of the first {LOOKED_AT} invalid and skipped" if data.invalid else ""
        same = columns.get("solution") is not None and columns.get("solution") == columns.get("answer")
        training = "the file's explanations" if self.explained else "explanations that the model writes itself"
        why = "every row has one" if self.explained else "the file has none"
        graded = f"solve rates, graded as `{self.task}`" if self.task else "the reward only"
        because = f"answers look like {'letters' if self.task == 'multiple_choice' else 'numbers or formulas'}"
        without = "the file has no answers that a grader can compare"
        lines = [
            f"wrote {self.output}: {data.rows:,} problems of {self.config.data}{invalid}",
            f"columns: {mapped or 'as rlt knows them'}" + (" (no worked solution: the answer takes its place)" * same),
            f"held out: the first {self.held_out} problems (a tenth, at most 200)",
            f"warm-up: on {training}, because {why}",
            f"judged by: {graded}, because {because if self.task else without}",
            f"hardware: {f'{self.count} x {self.gpu}' if self.gpu else 'CPU'}, {hardware}",
        ]
        how = "LoRA" if choice.lora else "all weights"
        length = f"explanations up to {self.most_tokens:,} tokens, " + (
            "1.5 x the 95th percentile of the file's" if self.explained else "the file has none to measure"
        )
        if choice.planned is None:
            return [
                *lines,
                f"model: {choice.model} ({how}), as given",
                length,
                "time: not planned (`rlt plan` covers GPUs only)",
            ]
        planned = choice.planned
        peak = max(step.peak for step in planned.steps) / GIB
        fits = planned.fits_memory and planned.hours <= self.config.hours
        reason = (
            "as given" if self.config.model else f"the largest Qwen2.5 that fits within {self.config.hours:g} hours"
        )
        if not fits:
            reason = "DOES NOT FIT: give a larger --gpu, more --hours or a smaller --model"
        memory = f"{peak:.0f} of {planned.gpu.memory / GIB:.0f} GiB per GPU"
        return [
            *lines,
            f"model: {choice.model} ({how}), {reason}",
            length,
            f"planned: {planned.hours:.1f} hours, {memory}, {planned.disk_peak / 1e9:.0f} GB of disk",
        ]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
