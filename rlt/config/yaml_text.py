"""YAML as people write it: `1e-6` is a number, `no` a word; no repeated keys or exploding aliases."""

from __future__ import annotations

import re

import yaml

MOST_NODES = 100_000  # of a YAML text with its aliases expanded


class _Yaml(yaml.SafeLoader):
    """SafeLoader that reads 1e-6 as a number and `no` as a word, as YAML 1.2 does, and checks keys and aliases."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if first in "tTfF" or tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_data(self) -> object:
        node = self.get_single_node()
        if node is None:
            return None
        _checked_size(node, {}, set())
        return self.construct_document(node)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _checked_size(node: yaml.Node, sizes: dict[int, int], around: set[int]) -> int:
    """Nodes of a YAML tree with aliases expanded; raises ConstructorError for cycles, repeated keys, over MOST_NODES."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in around:
        raise yaml.constructor.ConstructorError(None, None, "an anchor contains itself", node.start_mark)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    around.add(id(node))
    sizes[id(node)] = size = 1 + sum(_checked_size(child, sizes, around) for child in children)
    around.discard(id(node))
    if size > MOST_NODES:
        problem = f"more than {MOST_NODES} values once its anchors are expanded"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return size


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in lines:
                problem = f"the key `{key.value}` is already in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1


def parse_yaml(text: str) -> object:
    """The content of a YAML text that a user wrote.

    Raises yaml.YAMLError, also for a repeated key, an anchor that contains itself, and excessive aliases or nesting.
    `yaml_problem` formats it as one line.
    """
    try:
        return yaml.load(text, _Yaml)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and in which line, as one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    problem = " ".join(str(problem).split())
    return f"line {mark.line + 1}: {problem}" if mark is not None else problem
