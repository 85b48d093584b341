"""Hooks of the documentation's site: recipes' pages, reference of keys and Python, navigation, links, formulas as MathML."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from rlt.config import STAGES, Config, ServeConfig, ViewConfig
from rlt.helptext import shown
from rlt.planning import PlanConfig
from rlt.recipe import RecipeHead

ROOT = Path(__file__).resolve().parents[1]
MODULES = {  # page of the Python reference -> its modules
    "records": ["rlt.types", "rlt.errors"],
    "text": ["rlt.text.formats", "rlt.text.tokens"],
    "reward": [
        "rlt.reward.formula",
        "rlt.reward.scoring",
        "rlt.reward.trl",
        "rlt.reward.placebos",
        "rlt.reward.accuracy",
    ],
    "models": ["rlt.models.loading", "rlt.models.logprobs"],
    "engines": ["rlt.engines.base", "rlt.engines.build"],
    "data": ["rlt.data.problems", "rlt.data.explanations", "rlt.data.rows"],
    "tasks": ["rlt.tasks", "rlt.tasks.grading", "rlt.tasks.benchmarks"],
    "stages": [f"rlt.stages.{stage}" for stage in STAGES],
    "results": ["rlt.results.intervals", "rlt.results.summary", "rlt.results.comparison"],
    "recipes": ["rlt.recipe", "rlt.pipeline", "rlt.catalog", "rlt.drafting", "rlt.evolve.selection"],
    "integrations": ["rlt.integrations.service", "rlt.integrations.trl"],
}
OTHERS = {"recipe": RecipeHead, "plan": PlanConfig, "serve": ServeConfig, "view": ViewConfig}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation; pages of integrations and recipes are those that are there."""
    recipes = [path.parent.name for path in sorted((ROOT / "recipes").glob("*/README.md"))]
    integrations = sorted(path.name for path in (ROOT / "docs" / "integrations").glob("*.md"))
    howtos = ["own-data", "score", "trainers", "vllm", "students", "cluster", "reward-rises"]
    config.nav = [
        {"Start": "index.md"},
        {"Method": ["method.md", "published-code.md", "experiments.md"]},
        {"Recipes": [{name: f"recipes/{name}.md"} for name in recipes]},
        {"How to": ["tutorials.md", *(f"howto/{name}.md" for name in howtos), "archive.md", "view.md", "evaluation.md",
                    "planning.md"]},
        {"Integrations": ["serve.md", *(f"integrations/{name}" for name in integrations)]},
        {"Reference": ["reference/keys.md", "files.md", "errors.md",
                       {"Python": [{page: f"reference/{page}.md"} for page in MODULES]}]},
        {"Questions": "faq.md"},
    ]  # fmt: skip
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from the repository."""
    made = {"reference/keys.md": keys_page()}
    for page, modules in MODULES.items():
        made[f"reference/{page}.md"] = "\n\n".join([f"# {page.capitalize()}", *(f"::: {module}" for module in modules)])
    for readme in sorted((ROOT / "recipes").glob("*/README.md")):
        text = readme.read_text(encoding="utf-8")
        for recipe in sorted(readme.parent.glob("*.yaml")):
            text += f"\n\n## {recipe.name}\n\n```yaml\n{recipe.read_text(encoding='utf-8')}```\n"
        made[f"recipes/{readme.parent.name}.md"] = text
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


# -- keys --------------------------------------------------------------------------------------------------------------


def keys_page() -> str:
    """Every key of every configuration: type, default, meaning, the stages that have it, and the class that defines it."""
    users: dict[type, list[str]] = {}
    for name, model in {**STAGES, **OTHERS}.items():
        for kind in model.__mro__:
            if issubclass(kind, Config) and kind is not Config:
                users.setdefault(kind, []).append(name)
    for model in list(users):
        for field in model.model_fields.values():
            for nested in _nested(field):
                users.setdefault(nested, []).extend(one for one in users[model] if one not in users.get(nested, []))
    parts = [
        "# Keys",
        "Every key of recipes and commands, made from the configuration itself. In a recipe a key stands in its step; on the "
        "command line `kl_coef` is `--kl-coef`, or `--train.kl-coef` for `rlt run`. `trainer` goes to TRL, `engine_options` to "
        "the engine, unread. Sources of numbers stand with their meaning.",
    ]
    shared = [kind for kind, names in users.items() if kind not in {**STAGES, **OTHERS}.values() and _own(kind)]
    for name, model in {**STAGES, **OTHERS}.items():
        inherited = ", ".join(
            f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in model.__mro__ if kind in shared
        )
        text = " ".join((model.__doc__ or "").split())
        parts += [f"## {name}", text, *([f"Also: {inherited}."] if inherited else []), *_table(model)]
    parts.append("# Shared keys")
    for kind in shared:
        text = " ".join((kind.__doc__ or "").split())
        parts += [f"## {kind.__name__}", text, f"Of: {', '.join(f'`{name}`' for name in users[kind])}.", *_table(kind)]
    return "\n\n".join(parts) + "\n"


def _own(kind: type[Config]) -> dict[str, FieldInfo]:
    return {name: field for name, field in kind.model_fields.items() if name in kind.__annotations__}


def _nested(field: FieldInfo) -> Iterator[type[Config]]:
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, Config):
            yield kind


def _table(kind: type[Config]) -> list[str]:
    fields = _own(kind)
    if not fields:
        return []
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = "required" if field.is_required() else f"`{shown(field.get_default(call_default_factory=True))}`"
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{name}` | {_cell(_type(field.annotation))} | {_cell(default)} | {_cell(meaning)} |")
    return ["\n".join(rows), f"Source: `{kind.__module__}.{kind.__qualname__}`."]


def _type(kind: object) -> str:
    """A type in words: `text or null`, `list of number`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Path: "path"}
    return names.get(kind) or ("any value" if kind is typing.Any else getattr(kind, "__name__", "any value"))  # type: ignore[call-overload]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# -- links and formulas --------------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their page here, or become their name; a file that is absent is an error."""
    source = page.file.src_uri
    recipe = re.fullmatch(r"recipes/(\w[\w-]*)\.md", source)
    folder = ROOT / "recipes" / recipe[1] if recipe else (ROOT / "docs" / source).parent
    depth = "../" * source.count("/")

    def link(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, _, anchor = target.partition("#")
        there = (folder / path).resolve()
        if not path or "://" in target or (there.is_file() and there.is_relative_to(ROOT / "docs") and not recipe):
            return match[0]
        if files.get_file_from_path(f"{Path(source).parent.as_posix()}/{path}".removeprefix("./")) and not recipe:
            return match[0]
        if not there.exists() and not _made(there):
            raise PluginError(f"{source}: the link {target} leads nowhere")
        return _page_of(there, text, anchor, depth)

    return re.sub(r"(?<!\!)\[((?:[^\[\]]|`[^`]*`)+)\]\(([^)\s]+)\)", link, markdown)


def _made(there: Path) -> bool:
    docs = ROOT / "docs"
    return there.is_relative_to(docs / "recipes") or there.is_relative_to(docs / "reference")


def _page_of(there: Path, text: str, anchor: str, depth: str) -> str:
    mark = f"#{anchor}" if anchor else ""
    if there.is_relative_to(ROOT / "docs"):
        return f"[{text}]({depth}{there.relative_to(ROOT / 'docs').as_posix()}{mark})"
    recipe = there if there.is_dir() else there.parent
    if recipe.parent == ROOT / "recipes" and (there.is_dir() or there.name == "README.md"):
        return f"[{text}]({depth}recipes/{recipe.name}.md{mark})"
    if there == ROOT / "README.md":
        return f"[{text}]({depth}index.md)"
    return f"{text} (`{there.relative_to(ROOT).as_posix()}`)"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers draw without a script."""

    def formula(match: re.Match[str]) -> str:
        latex = match[2].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
        return convert(latex, display="block" if match[1] == "div" else "inline")

    return re.sub(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', formula, html, flags=re.DOTALL)
