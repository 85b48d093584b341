"""What `make release-check` does in the environment that has the wheel; exit status 1 where something is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import rlt
from rlt.catalog import shipped_recipes

COPYLEFT = re.compile(r"\b(A?GPL|General Public License|SSPL)\b", re.IGNORECASE)
LESSER = re.compile(r"\bLGPL|Lesser\b", re.IGNORECASE)
# Extras, models, and what other commands of a recipe's README make first.
NOT_HERE = re.compile(
    r"pip install 'rlt\[[\w-]+\]'|: not a model folder \(no such folder\)|(?:models|runs)/\S+: no such file"
)
"""What a recipe may ask for that this environment does not have: an extra, or a model that its README says how to get."""


def main() -> int:
    home = Path(rlt.__file__).parent
    print(f"rlt {rlt.__version__} in {home.parent.name}, {sum(1 for _ in home.rglob('*'))} files")
    problems = [*licences(), *recipes(), *first_steps()]
    print("\n".join(f"PROBLEM: {problem}" for problem in problems) or "release check: passed")
    return 1 if problems else 0


def licences() -> list[str]:
    """Installed packages without a licence, or with one that would bind users of rlt."""
    problems, count = [], 0
    for package in metadata.distributions():
        fields = package.metadata
        classifiers = [line for line in fields.get_all("Classifier") or () if line.startswith("License")]
        said = fields.get("License-Expression") or "; ".join(classifiers) or (fields.get("License") or "")[:200]
        count += 1
        if not said.strip() and not fields.get_all("License-File"):
            problems.append(f"{fields['Name']}: says no licence")
        elif COPYLEFT.search(said) and not LESSER.search(said) and " OR " not in said:
            problems.append(f"{fields['Name']}: {said}")
    print(f"licences: {count} packages")
    return problems


def recipes() -> list[str]:
    """Recipes that `rlt check` refuses for another reason than what is not installed here."""
    problems = []
    for name in shipped_recipes():
        done = rlt_command("check", name)
        lines = (done.stderr or done.stdout).splitlines()
        refused = [line.strip() for line in lines[1:] or lines if not NOT_HERE.search(line)] if done.returncode else []
        problems += [f"rlt check {name}: {line}" for line in refused]
        print(
            f"rlt check {name}: {'ok' if not done.returncode else 'needs what is not installed' if not refused else 'FAILED'}"
        )
    return problems


def first_steps() -> list[str]:
    """The quickstart's first steps for one seed; the third trains a student from a model that the wheel carries."""
    for step in ("heldout", "corpus", "student"):
        done = rlt_command("run", "quickstart", "--seeds", "0", "--only", step)
        if done.returncode:
            return [f"rlt run quickstart --only {step}: {done.stderr.strip()[-500:]}"]
        print(f"rlt run quickstart --only {step}: ok")
    return (
        [] if Path("runs/quickstart/student/model.safetensors").is_file() else ["the student was not saved in ./runs"]
    )


def rlt_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rlt", *words], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
