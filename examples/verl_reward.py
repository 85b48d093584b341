"""verl's reward function without verl: what a running service gives one explanation, as verl's reward managers call it.

    rlt serve --student STUDENT --format stratos-user --port 8100
    RLT_URL=http://127.0.0.1:8100 .venv-verl/bin/python examples/verl_reward.py

Runs in verl's environment (`make engines`), without a GPU.
"""

from __future__ import annotations

import asyncio
import json

from rlt.integrations.verl import compute_score

LABEL = json.dumps({"question": "What is 2 + 3?", "solution": "2 + 3 = 5."})
EXPLANATIONS = ("Start at two and count three on: three, four, five.\n\n", "The capital of France is Paris.\n\n")


async def main() -> None:
    for text in EXPLANATIONS:
        scores = await compute_score("rlt", text + "<|end_of_explanation|>", LABEL)
        print(f"{scores['score']:8.3f}  {text.strip()}")


if __name__ == "__main__":
    asyncio.run(main())
