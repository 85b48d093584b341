"""Per-sample logs in inspect_ai's format: `inspect view --log-dir FOLDER` shows them.

inspect_ai is not imported: its pins conflict with rlt's. A log is a zip file of JSON in version 2 of the format; the tests
read it with inspect_ai's own `read_eval_log` (`make harness`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from rlt import __version__
from rlt.results.benchmarks import BenchmarkNumbers, Evaluated, ResponseRow
from rlt.types import JsonMap, JsonRow

VERSION = 2  # of the format, as in inspect_ai 0.3
WITHHELD = "withheld: the benchmark's authors ask not to write its questions to files"
_STOPS = {"stop": "stop", "eos": "stop", "length": "max_tokens"}


def write_logs(folder: Path, rows: Sequence[ResponseRow], results: Evaluated, prompts: Mapping[str, str]) -> list[Path]:
    """Writes `folder/BENCHMARK.eval` for each benchmark of `results` (results.json of `rlt evaluate`); returns the paths.

    `rows`: those of responses.jsonl. `prompts`: key of a row -> the text that the model was given; without one (a private
    benchmark) the log has the question's hash instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _write(folder, name, numbers, [row for row in rows if row["benchmark"] == name], results, prompts)
        for name, numbers in results["benchmarks"].items()
    ]


def _write(
    folder: Path,
    name: str,
    numbers: BenchmarkNumbers,
    rows: Sequence[ResponseRow],
    results: Evaluated,
    prompts: Mapping[str, str],
) -> Path:
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.eval"
    created = datetime.now(UTC).isoformat(timespec="seconds")
    header = _header(name, numbers, rows, results, created)
    unfinished = path.with_suffix(".tmp")
    with ZipFile(unfinished, "w", ZIP_DEFLATED, compresslevel=3) as log:
        _put(log, "_journal/start.json", {"version": VERSION, "eval": header["eval"], "plan": header["plan"]})
        summaries = []
        for row in rows:
            sample = _sample(row, results["model"], prompts)
            _put(log, f"samples/{sample['id']}_epoch_{sample['epoch']}.json", sample)
            kept = ("id", "epoch", "input", "target", "scores", "metadata", "model_usage", "uuid")
            summaries.append(
                {**{key: sample[key] for key in kept}, "input": str(sample["input"])[:1000], "completed": True}
            )
        _put(log, "summaries.json", summaries)
        _put(log, "header.json", header)
    unfinished.replace(path)
    return path


def _put(log: ZipFile, name: str, value: object) -> None:
    log.writestr(name, json.dumps(value, ensure_ascii=False))


def _header(
    name: str, numbers: BenchmarkNumbers, rows: Sequence[ResponseRow], results: Evaluated, created: str
) -> JsonRow:
    sampling = results["sampling"]
    generate = {key: sampling[key] for key in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
    metrics: dict[str, float] = {"accuracy": numbers["pass@1"]}
    if numbers["standard_error"] is not None:
        metrics["stderr"] = numbers["standard_error"]
    ids = list(dict.fromkeys(str(row["question_id"]) for row in rows))
    usage = {results["model"]: _usage(rows)}
    scorer = numbers["task"]
    spec = {
        "eval_id": _id("eval", created, name),
        "run_id": _id("run", created),
        "task_id": _id("task", name),
        "created": created,
        "task": name,
        "task_version": numbers["version"],
        "dataset": {"name": name, "samples": len(ids), "sample_ids": ids, "shuffled": False},
        "model": results["model"],
        "model_generate_config": generate,
        "config": {"epochs": numbers["samples"]},
        "packages": {"rlt": __version__},
        "scorers": [{"name": scorer}],
        "metadata": {key: results[key] for key in ("preset", "engine", "format", "system_prompt", "instruction")}
        | {"source": results["sources"][name], "interval": numbers["interval"], "fingerprint": numbers["fingerprint"]},
    }
    score = {
        "name": scorer,
        "scorer": scorer,
        "metrics": {key: {"name": key, "value": value} for key, value in metrics.items()},
    }
    return {
        "version": VERSION,
        "status": "success",
        "eval": spec,
        "plan": {"name": "plan", "steps": [{"solver": "generate"}], "config": generate},
        "results": {"total_samples": len(rows), "completed_samples": len(rows), "scores": [score]},
        "stats": {"started_at": created, "completed_at": created, "model_usage": usage},
    }


def _sample(row: ResponseRow, model: str, prompts: Mapping[str, str]) -> JsonRow:
    asked = prompts.get(row["key"])
    text = f"{WITHHELD} (sha256 {row['question_sha256']})" if asked is None else asked
    message = {"role": "assistant", "content": row["response"], "source": "generate", "model": model}
    stop = _STOPS.get(str(row["finish_reason"]), "unknown")
    usage = _usage([row])
    score = {
        "value": "C" if row["correct"] else "I",
        "answer": row["extracted"],
        "explanation": row.get("error"),
    }
    return {
        "id": str(row["question_id"]),
        "epoch": row["sample"] + 1,
        "uuid": _id("sample", row["key"]),
        "input": text,
        "target": row["answer"],
        "messages": [{"role": "user", "content": text, "source": "input"}, message],
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": stop}],
            "completion": row["response"],
            "usage": usage,
        },
        "scores": {row["task"]: score},
        "metadata": {"seed": row["seed"], "prompt_sha256": row["prompt_sha256"]},
        "model_usage": {model: usage},
    }


def _usage(rows: Iterable[JsonMap]) -> dict[str, int]:
    counts = [(row["prompt_tokens"] or 0, row["completion_tokens"] or 0) for row in rows]
    given, written = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return {"input_tokens": given, "output_tokens": written, "total_tokens": given + written}


def _id(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:22]
