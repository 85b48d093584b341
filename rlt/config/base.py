"""The base of every configuration (frozen, checked, no unknown keys), and shared field types."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from rlt.errors import ConfigError
from rlt.types import JsonMap


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, finite numbers, `~/` expanded, help texts under the fields."""

    # Numbers are accepted for text: `name: 2`, `--model 7`.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: object) -> object:
        """Finite numbers, no booleans for numbers, `~/` expanded; also inside mappings that are passed through."""
        if not isinstance(values, dict):
            return values
        wrong: list[InitErrorDetails] = []
        for name, value in values.items():
            wrong += [
                _wrong((name, *path), f"must be a finite number, not {number}")
                for path, number in _numbers_without_end(value)
            ]
            field = cls.model_fields.get(name)
            if field is not None and _is_number(field.annotation) and _has_bool(value):
                wrong.append(_wrong((name,), "must be a number, not true or false"))
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return {name: _expanded(value) for name, value in values.items()}


def _wrong(path: tuple[str | int, ...], message: str) -> InitErrorDetails:
    return {"type": PydanticCustomError("value", "{message}", {"message": message}), "loc": path, "input": None}


def _numbers_without_end(
    value: object, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers_without_end(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _numbers_without_end(item, (*path, number))


def _expanded(value: object) -> object:
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    return [_expanded(item) for item in value] if isinstance(value, list) else value


def _is_number(annotation: object) -> bool:
    kinds = {annotation, *typing.get_args(annotation)}
    kinds |= {kind for other in kinds for kind in typing.get_args(other)}
    return bool(kinds & {int, float}) and not kinds & {bool, str, Any}


def _has_bool(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(one, bool) for one in value))


def as_list(value: object) -> object:
    """A list from one value, or from several separated by commas."""
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Names = Annotated[list[str], BeforeValidator(as_list)]
Paths = Annotated[list[Path], BeforeValidator(as_list)]


def _as_described(value: object) -> object:
    """A mapping of names to descriptions from such a mapping, a list of names, or one name."""
    value = as_list(value)
    return dict.fromkeys(value) if isinstance(value, list) else value


Described = Annotated[dict[str, str | None], BeforeValidator(_as_described)]


def _named_variable(name: str) -> str:
    # Most keys of servers (sk-..., hf_...) have dashes or small letters. The value is not repeated: it may be such a key.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise ValueError(
            "must be the name of an environment variable that holds the key (capital letters, digits and _, such as "
            "OPENAI_API_KEY), not the key itself"
        )
    return name


def is_url(name: str) -> bool:
    """Whether a model's name is a server's address."""
    return name.startswith(("http://", "https://"))


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and transformers can be seeded with

EnvironmentVariable = Annotated[str, AfterValidator(_named_variable)]


AnyConfig = TypeVar("AnyConfig", bound=Config)


def validate(model: type[AnyConfig], values: JsonMap, where: str) -> AnyConfig:
    """`model` built from `values`. Raises ConfigError with `where`, every bad key and, for a typo, the closest names."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_lines(model, error))) from error


def _lines(model: type[Config], error: ValidationError) -> list[str]:
    """One line per bad key. Values are left out: one of them may be a secret in the wrong place."""
    import difflib

    lines = []
    for item in error.errors(include_input=False, include_url=False):
        key = ".".join(str(part) for part in item["loc"] if part not in ("one", "several"))  # tags of `Data`
        near = difflib.get_close_matches(key.split(".")[-1], model.model_fields, n=2, cutoff=0.6)
        hint = f" (did you mean {' or '.join(near)}?)" if item["type"] == "extra_forbidden" and near else ""
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        lines.append(f"`{key}`: {message}{hint}" if key else message)  # no key: the message is about several keys
    return lines
