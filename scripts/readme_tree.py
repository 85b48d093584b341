"""Write the README's file tree anew: one module per line, with the first sentence of its docstring.

python scripts/readme_tree.py           (`--check`: exit 1 if the README's tree is not what would be written)
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree:begin -->\n", "<!-- tree:end -->"
PACKAGES = (
    "", "text", "models", "engines", "data", "tasks", "reward", "training", "results", "planning", "stages", "serve", "view",
    "integrations",
)  # fmt: skip
WIDTH = 120


def tree() -> str:
    """The tree, in the order in which packages import each other."""
    known = {*PACKAGES, "shipped", "__pycache__"}
    found = [path.name for path in sorted((ROOT / "rlt").iterdir()) if path.is_dir() and path.name not in known]
    lines = []
    for package in (*PACKAGES, *found):
        folder = ROOT / "rlt" / package
        modules = [path for path in sorted(folder.glob("*.py")) if path.name not in ("__init__.py", "__main__.py")]
        if modules:
            lines.append(f"rlt/{package}/" if package else "rlt/")
        for path in modules:
            line = f"    {path.name:<18} {_sentence(path)}"
            lines.append(line if len(line) <= WIDTH else line[: WIDTH - 4].rsplit(" ", 1)[0] + " ...")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split()).rstrip(".")


def main() -> int:
    """Exit status."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + BEGIN + tree() + END + after
    if "--check" in sys.argv:
        return int(text != wanted)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
