"""YAML as a run file has it: plain values, anchors and merges; no key twice, nothing that a bomb is made of."""

import re
from typing import Any

import yaml

_LARGEST = 2**20
"""Bytes of a run file; larger is another file."""
_DEEPEST = 30
"""Levels of lists and mappings; a run file has six."""
_MOST = 200_000
"""Values, with those of aliases each time that they are named."""


class YamlError(yaml.YAMLError):
    """What a run file or a flag must not hold; its text is for people."""


class _Loader(yaml.SafeLoader):
    """Plain values only, as YAML 1.2 reads them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping in which no key stands twice, of which YAML would keep the last without a word.

        Keys of the mapping itself go before those that it merges from others (<<).
        """
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(f"line {key_node.start_mark.line + 1}: a key must be a name, not a list or a mapping")
            key = "<<" if key_node.tag.endswith(":merge") else self.construct_object(key_node)
            if key in seen:
                raise YamlError(f"{key} stands twice (line {key_node.start_mark.line + 1}); join them")
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; Python itself refuses to read one of thousands of digits."""
        try:
            return int(super().construct_yaml_int(node))
        except ValueError:
            line = node.start_mark.line + 1
            raise YamlError(f"line {line}: a number of {len(node.value)} digits; at most 18 are read") from None


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "float", "str", "seq", "map")
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
# Unlike YAML 1.1, 12:00:00 is no number of seconds, 010 none of base 8, a date is its text, and so are yes, no, on and
# off, which name classes too; and 1e3 is a number.
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some reader takes for a number, a time or a truth value."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def write_yaml(value: Any) -> str:
    """YAML that `read_yaml` reads back as the same."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read_yaml(text: str | bytes) -> Any:
    """What a YAML document holds: lists, mappings, texts, numbers, true, false and null.

    Args:
        text: of a run file, or of a flag's value.

    Raises:
        YamlError: when it is no YAML, or holds more than that; in one line.
    """
    if len(text) > _LARGEST:
        raise YamlError(f"it has {len(text)} bytes, a run file at most {_LARGEST}")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        loader = _Loader(decoded)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except YamlError:
        raise
    except UnicodeDecodeError as error:
        raise YamlError(f"it is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise YamlError(f"it is no valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None


def _measure(root: yaml.Node) -> None:
    """See that a document is no deeper and, with its aliases written out, no larger than a run file may be."""
    sizes: dict[int, tuple[int, int]] = {}
    open_: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """(values, levels) of a node."""
        if not isinstance(node, yaml.CollectionNode):
            return 1, 0
        if id(node) in open_:
            raise YamlError(f"line {node.start_mark.line + 1}: holds itself, by an alias")
        if id(node) not in sizes:
            open_.add(id(node))
            pairs = [part for one in node.value for part in (one if isinstance(one, tuple) else (one,))]
            inner = [measure(one) for one in pairs]
            open_.discard(id(node))
            sizes[id(node)] = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        return sizes[id(node)]

    values, levels = measure(root)
    if levels > _DEEPEST:
        raise YamlError(f"it is nested {levels} levels deep, a run file at most {_DEEPEST}")
    if values > _MOST:
        raise YamlError(f"it holds {values} values with those of its aliases, a run file at most {_MOST}")
