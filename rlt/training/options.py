"""Options of TRL, transformers, peft and vLLM, read from their source.

Importing these packages takes many seconds. Nothing is executed: `ast` finds classes and annotations in the installed
files.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rlt.types import JsonMap, JsonRow

TRAINERS = {
    "pretrain": ("transformers.training_args", "TrainingArguments"),
    "warmup": ("trl.trainer.sft_config", "SFTConfig"),
    "distill": ("trl.trainer.sft_config", "SFTConfig"),
    "train": ("trl.trainer.grpo_config", "GRPOConfig"),
    "coldstart": ("trl.trainer.grpo_config", "GRPOConfig"),
}
"""Stage -> module and name of the class of its `trainer` options."""

# Options of `trainer` that rlt refuses, with the reason or the alternative: another key sets them, or TRL would silently
# truncate, drop or rewrite what rlt has rendered, counted or saved. Set to null or false they are harmless and pass.
REFUSED = {
    "output_dir": "the stage's `output` sets it",
    "seed": "the stage's own `seed` sets it",
    "trust_remote_code": "the stage's own `trust_remote_code` sets it",
    "hub_token": "it would be written to the run's files; set the environment variable HF_TOKEN",
    # Rows.
    "max_length": "TRL would silently truncate rows to it, and with them the end of turn; set the stage's own `max_length`, "
    "which refuses or drops longer rows",
    "truncation_mode": "rlt never truncates",
    "packing": "it needs TRL's `max_length`, which truncates rows silently",
    "eval_packing": "training has no evaluation data",
    "dataset_kwargs": "rlt prepares the rows itself",
    "remove_unused_columns": "it removes the columns that the reward reads",
    "dataloader_drop_last": "the last rows of each epoch would be dropped but still be counted",
    "chat_template_path": "it would change the template after the rows are rendered; put a `chat_template.jinja` into the "
    "model's folder",
    "chat_template_kwargs": "rlt renders the prompts; TRL would ignore it",
    # Tokens.
    "eos_token": "the saved tokenizer would no longer be the one that the rows were rendered with; change "
    "`tokenizer_config.json` in the model's folder",
    "pad_token": "the saved tokenizer would no longer be the one that the rows were rendered with; change "
    "`tokenizer_config.json` in the model's folder",
    # The loss: rlt marks the tokens that are learned.
    "completion_only_loss": "rlt marks the learned tokens itself",
    "assistant_only_loss": "rlt marks the learned tokens itself",
    # Resuming.
    "save_only_model": "a run could not resume from such a checkpoint",
    "resume_from_checkpoint": "the same command resumes by itself",
    "ignore_data_skip": "a resumed run would read its first rows twice",
    "auto_find_batch_size": "running out of memory would silently shrink the batch; set `per_device_train_batch_size`",
    # Evaluation.
    "do_eval": "training has no evaluation data; `rlt evaluate` evaluates the model",
    "eval_on_start": "training has no evaluation data; `rlt evaluate` evaluates the model",
    "load_best_model_at_end": "training has no evaluation data to choose by; the last model is the result",
}
REFUSED_IN_MODEL = {
    "dtype": "the stage's own `dtype` sets it",
    "torch_dtype": "the stage's own `dtype` sets it",
    "trust_remote_code": "the stage's own `trust_remote_code` sets it",
    "use_safetensors": "weights are read from safetensors only",
    "ignore_mismatched_sizes": "weights of another shape would be replaced by random ones",
}
# Keys of `generation_kwargs` that another option of TRL sets, or that would change where completions end.
REFUSED_IN_GENERATION = {
    "max_new_tokens": "`trainer.max_completion_length` sets it",
    "max_length": "`trainer.max_completion_length` sets it",
    **{name: f"`trainer.{name}` sets it" for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    "do_sample": "`trainer.temperature` sets it",
    "num_return_sequences": "`trainer.num_generations` sets it",
    "eos_token_id": "the model's generation_config.json defines where a completion ends",
    "stop_strings": "a completion ends at its end of turn",
}
# Accepted by transformers' from_pretrained besides its parameters and the keywords it pops.
ENGINE_EXTRAS = ("attn_implementation",)


def trainer_problems(options: JsonMap, module: str, kind: str) -> list[str]:
    """What is wrong with a recipe's `trainer` options, one line each: `kind` (of `module`) has no such option, the value
    has the wrong type, or rlt refuses it.
    """
    known = fields_of(module, kind)
    lines = []
    for name, value in options.items():
        refused = name in REFUSED and value not in (None, False)
        lines.append(
            f"`trainer.{name}`: {REFUSED[name]}. Leave it out."
            if refused
            else _problem("trainer", name, value, known, kind)
        )
    if options.get("hub_strategy", "end") != "end":
        lines.append("`trainer.hub_strategy`: rlt uploads the finished model only. Leave it out.")
    if options.get("eval_strategy", "no") != "no":
        lines.append(f"`trainer.eval_strategy`: {REFUSED['do_eval']}. Leave it out.")
    for key, refusals in (("model_init_kwargs", REFUSED_IN_MODEL), ("generation_kwargs", REFUSED_IN_GENERATION)):
        given = options.get(key) or {}
        if isinstance(given, Mapping):
            names = sorted(given.keys() & refusals)
            lines += [f"`trainer.{key}.{name}`: {refusals[name]}. Leave it out." for name in names]
    loading = options.get("model_init_kwargs")
    attention = loading.get("attn_implementation") if isinstance(loading, Mapping) else None
    if options.get("padding_free") and "flash" not in str(attention):
        lines.append(
            "`trainer.padding_free`: without flash attention each row would attend to the rows before it. Leave it out, or set "
            "`trainer.model_init_kwargs.attn_implementation` to flash_attention_2."
        )
    return [line for line in lines if line is not None]


def peft_problems(options: JsonMap) -> list[str]:
    """What is wrong with a recipe's `peft` options, one line each; empty if peft is not installed."""
    return fields_problems("peft", options, "peft.tuners.lora.config", "LoraConfig")


def fields_problems(key: str, values: JsonMap, module: str, kind: str) -> list[str]:
    """What is wrong with values that become a `kind` of `module`, one line each."""
    known = fields_of(module, kind)
    lines = [_problem(key, name, value, known, kind) for name, value in values.items() if known]
    return [line for line in lines if line is not None]


def engine_problems(engine: str, options: JsonMap, model: JsonMap | None) -> list[str]:
    """Unknown `engine_options` of an engine, one line each.

    `model`: its config.json, whose keys transformers accepts too. Without it (None) only names close to a known one are
    reported.
    """
    if engine == "vllm":
        known = [
            *parameters_of("vllm.entrypoints.llm", "LLM", "__init__"),
            *fields_of("vllm.engine.arg_utils", "EngineArgs"),
        ]
        whose = "vllm.LLM"
    elif engine == "transformers":
        loading = parameters_of("transformers.modeling_utils", "PreTrainedModel", "from_pretrained")
        known = list(dict.fromkeys([*loading, *ENGINE_EXTRAS, *(model or {})])) if loading else []
        whose = "from_pretrained"
    else:
        return [f"`engine_options`: engine `{engine}` takes none. Leave them out."] if options else []
    unknown = [name for name in options if known and name not in known]
    if engine == "transformers" and model is None:
        unknown = [name for name in unknown if difflib.get_close_matches(name, known)]
    return [f"`engine_options.{name}`: {_unknown(name, known, whose)}" for name in unknown]


def _problem(key: str, name: str, value: object, known: Mapping[str, Field], kind: str) -> str | None:
    if name not in known:
        return f"`{key}.{name}`: {_unknown(name, known, kind)}"
    field = known[name]
    if field.accepts(value):
        return None
    if field.choices and isinstance(value, str):
        near = difflib.get_close_matches(value, field.choices, n=2) or field.choices[:8]
        more = " ..." if len(field.choices) > len(near) else ""
        return f"`{key}.{name}`: unknown value {value!r}; expected one of {', '.join(near)}{more}."
    return f"`{key}.{name}`: expected {field.written}, got {value!r}."


def _unknown(name: str, known: Iterable[str], whose: str) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return f"unknown option of {whose}" + (f" (did you mean {' or '.join(near)}?)" if near else "") + "."


# -- fields of a dataclass -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One field: its annotation as written and as a type, unconstrained where the source does not tell.

    `choices`: the accepted texts, for the values of an enum.
    """

    written: str
    type: Any
    choices: tuple[str, ...] = ()

    def accepts(self, value: object) -> bool:
        """Whether a value from YAML has the field's type; the only conversion is from int to float."""
        from pydantic import TypeAdapter, ValidationError

        try:
            TypeAdapter(self.type).validate_python(value, strict=True)
        except ValidationError:
            return False
        return True


@lru_cache
def fields_of(module: str, name: str) -> dict[str, Field]:
    """Field name -> field, of a dataclass and its bases; empty if it cannot be found."""
    found = _find(module, name)
    if found is None:
        return {}
    where, node = found
    fields: dict[str, Field] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            fields |= fields_of(where, base.id)
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        written = ast.unparse(line.annotation)
        if written.startswith("ClassVar") or _is_not_init(line.value):
            fields.pop(line.target.id, None)
        else:
            fields[line.target.id] = _field(written, where)
    return fields


def _is_not_init(value: ast.expr | None) -> bool:
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in keywords)


def _field(written: str, module: str) -> Field:
    names = _Names(module)
    try:
        kind = eval(written, {"__builtins__": {}}, names)
    except (TypeError, AttributeError, SyntaxError):
        return Field(written, Any)
    # `SchedulerType | str`: transformers converts text to the enum, and refuses any other text.
    members = typing.get_args(kind)
    choices = tuple(
        str(one) for member in members if typing.get_origin(member) is Literal for one in typing.get_args(member)
    )
    if names.has_enum and choices and str in members:
        return Field(written, typing.Union[tuple(member for member in members if member is not str)], choices)  # noqa: UP007
    return Field(written, kind)


class _Names(dict[str, object]):
    """Names in an annotation: builtins and typing's as they are, an enum as its values, all others unconstrained."""

    def __init__(self, module: str) -> None:
        plain = {kind.__name__: kind for kind in (str, int, float, bool, dict, list, tuple, set, type)}
        super().__init__({**vars(typing), **plain})
        self.module, self.has_enum = module, False

    def __missing__(self, name: str) -> object:
        values = _enum_values(self.module, name)
        self.has_enum = self.has_enum or bool(values)
        return Literal[values] if values else Any


def _enum_values(module: str, name: str) -> tuple[object, ...]:
    found = _find(module, name)
    if found is None or not any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in found[1].bases):
        return ()
    lines = [line.value for line in found[1].body if isinstance(line, ast.Assign)]
    return tuple(value.value for value in lines if isinstance(value, ast.Constant))


@lru_cache
def parameters_of(module: str, name: str, method: str) -> tuple[str, ...]:
    """Names that a method accepts: its parameters, and the constants that it pops or gets from its keywords."""
    found = _find(module, name)
    body = [] if found is None else found[1].body
    node = next((line for line in body if isinstance(line, ast.FunctionDef) and line.name == method), None)
    if node is None:
        return ()
    names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    for call in ast.walk(node):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in ("pop", "get")
            and ast.unparse(call.func.value) == "kwargs"
            and isinstance(call.args[0], ast.Constant)
        ):
            names.append(str(call.args[0].value))
    return tuple(names)


# -- finding source ------------------------------------------------------------------------------------------------------


def literal_of(module: str, name: str) -> JsonRow:
    """The mapping that a module assigns to a name at its top level, read from its source; empty if there is none."""
    tree = _tree(module)
    for line in [] if tree is None else tree.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value:
            target = line.targets[0] if isinstance(line, ast.Assign) else line.target
            if isinstance(target, ast.Name) and target.id == name:
                value: JsonRow = ast.literal_eval(line.value)
                return value
    return {}


def _find(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """`(module, class)` that defines the name, following imports from the given module."""
    seen: set[tuple[str, str]] = set()
    while (module, name) not in seen:
        seen.add((module, name))
        tree = _tree(module)
        if tree is None:
            return None
        for line in tree.body:
            if isinstance(line, ast.ClassDef) and line.name == name:
                return module, line
        # Packages that load modules lazily have imports under TYPE_CHECKING.
        origin = next((o for line in ast.walk(tree) if (o := _imported(line, module, name)) is not None), None)
        if origin is None:
            return None
        module, name = origin
    return None


def _imported(line: ast.AST, module: str, name: str) -> tuple[str, str] | None:
    if not isinstance(line, ast.ImportFrom):
        return None
    alias = next((one for one in line.names if (one.asname or one.name) == name), None)
    if alias is None:
        return None
    package = module.split(".")
    if line.level:
        up = line.level - (1 if _is_package(module) else 0)
        package = package[: len(package) - up]
    else:
        package = []
    return ".".join([*package, *([line.module] if line.module else [])]), alias.name


def _is_package(module: str) -> bool:
    path = _path(module)
    return path is not None and path.name == "__init__.py"


@lru_cache
def _tree(module: str) -> ast.Module | None:
    path = _path(module)
    return None if path is None else ast.parse(path.read_text(encoding="utf-8"))


def _path(module: str) -> Path | None:
    """The source file of a module; only the top-level package is looked up, which imports nothing."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        for path in (Path(folder, *rest, "__init__.py"), Path(folder, *rest).with_suffix(".py")):
            if path.is_file():
                return path
    return None
