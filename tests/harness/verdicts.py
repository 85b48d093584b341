"""Run in the harness's environment: lm-evaluation-harness's own verdicts on responses, as JSON lines.

.venv-harness/bin/python verdicts.py FOLDER_OF_EXPORT TASK RESPONSES.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from lm_eval.tasks import TaskManager

    folder, name, responses = sys.argv[1:]
    loaded = TaskManager(include_path=folder).load([name])
    task = loaded["tasks"][name]
    docs = {doc["id"]: doc for doc in task.test_docs()}
    for line in Path(responses).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        doc = docs[row["question_id"]]
        print(
            json.dumps(
                {
                    "question_id": doc["id"],
                    "text": task.doc_to_text(doc),
                    **task.process_results(doc, [row["response"]]),
                }
            )
        )


if __name__ == "__main__":
    main()
