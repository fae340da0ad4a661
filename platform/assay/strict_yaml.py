"""YAML that cannot be misread: every name once, numbers in decimal, and no more than is written, however its aliases repeat it."""

import re
from pathlib import Path
from typing import Any

import yaml

from assay.errors import ConfigError
from assay.files import reading

MAX_BYTES = 1 << 20
"""A longer file is no file of settings."""

MAX_NODES = 10_000
"""Values of a file, those that its aliases repeat counted each time."""


def read_yaml(path: Path, remedy: str) -> Any:
    """Read a file of plain YAML values.

    Raises:
        ConfigError: it is missing, no YAML, too long, names something twice in one mapping, or has an
            alias in itself or too many of them.
    """
    with reading(path, ConfigError, remedy):
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it is longer than {MAX_BYTES >> 20} MB")
        return parse_yaml(content, MAX_NODES)


def parse_yaml(content: bytes, max_nodes: int) -> Any:
    """Read plain YAML values; whatever is wrong with them comes through as yaml's or Python's error."""
    loader = _Loader(content.decode("utf-8-sig"), max_nodes)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*|[^:_]*\.[^:_]*)")
"""Numbers as people read them: YAML 1.1 takes 012 for 10, 1:30 for 90 and 1_0 for 10."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes as yaml does, and counts them."""

    def __init__(self, stream: Any, max_nodes: int) -> None:
        super().__init__(stream)
        self.num_nodes, self.max_nodes = 0, max_nodes
        self.sizes: dict[int, int] = {}
        """Nodes below each whole node, by its address: the document keeps it."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; an alias counts as much as what it stands for."""
        before, is_alias = self.num_nodes, self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self.sizes:
            raise yaml.YAMLError("an alias stands in what it stands for")
        self.num_nodes += self.sizes[id(node)] if is_alias else 1
        if self.num_nodes > self.max_nodes:
            raise yaml.YAMLError(f"it has more than {self.max_nodes} values")
        if not is_alias:
            self.sizes[id(node)] = self.num_nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping, whose every name must stand once."""
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(
                f"{twice!r} stands twice in the mapping at line {node.start_mark.line + 1}"
            )
        return node


def _number(loader: yaml.SafeLoader, node: Any) -> int | float:
    if not _DECIMAL.fullmatch(node.value):
        raise yaml.YAMLError(
            f"the number {node.value!r} at line {node.start_mark.line + 1} is not written in decimal"
        )
    is_whole = node.tag.endswith(":int")
    return int(node.value) if is_whole else float(loader.construct_yaml_float(node))


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)
