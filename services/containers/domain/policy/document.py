"""Reads a compose file's YAML strictly: no aliases, tags, double keys or depths that readers understand differently."""

from typing import Any

import yaml

from libs.common.errors import FieldError
from services.containers.errors import ComposeRefused

MAX_TEXT_BYTES = 65_536
MAX_DEPTH = 20


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without anchors' uses and merge keys, which hide what a key-by-key reading sees."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call] # untyped in its stubs
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(event, "aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise _refusal(event, "tags are not allowed")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(event, f"nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _refusal(key, "keys must be plain words")
            if key.value in seen:
                raise _refusal(key, f"the key {key.value!r} is there twice")
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_document(text: str) -> dict[str, Any]:
    """Parse one YAML mapping of at most 64 KiB; raises ComposeRefused with the line of what is wrong."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise ComposeRefused([FieldError("/compose", f"the file is larger than {MAX_TEXT_BYTES} bytes")])
    try:
        document = yaml.load(text, _StrictLoader)  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ComposeRefused([FieldError("/compose", f"not YAML{line}: {problem}")]) from error
    if not isinstance(document, dict):
        raise ComposeRefused([FieldError("/compose", "the file is not a mapping")])
    return document


def _refusal(where: Any, why: str) -> ComposeRefused:
    return ComposeRefused([FieldError("/compose", f"line {where.start_mark.line + 1}: {why}")])
