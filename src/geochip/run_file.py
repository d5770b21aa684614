"""Reading the run file and the flags of a command, and telling in one line what is wrong with them.

jsonargparse does the reading, over the dataclasses of `geochip.config`; here is what it leaves to be said: all unknown
keys at once with what they may have meant, and types in words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from geochip.config import RunConfig
from geochip.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What a command was called with."""

    config: RunConfig
    """The run file, with the flags in place of its keys."""
    files: tuple[str, ...]
    """File names that follow the flags."""
    switches: frozenset[str]
    """The command's own switches that were given, such as "dry_run"."""


def parse_run_config(
    argv: Sequence[str], *, command: str, description: str, files: str | None = None
) -> tuple[RunConfig, tuple[str, ...]]:
    """Read the run file and the flags of a command without switches; see `parse_command`."""
    parsed = parse_command(argv, command=command, description=description, files=files)
    return parsed.config, parsed.files


def parse_command(
    argv: Sequence[str],
    *,
    command: str,
    description: str,
    files: str | None = None,
    switches: Mapping[str, str] | None = None,
) -> CommandLine:
    """Read the run file and the flags of one command.

    Args:
        argv: the command line without the program's name.
        command: the module's name, such as "chipping".
        description: what the command does, for --help.
        files: help text of the file names that may follow the flags; None when the command takes none.
        switches: what the command can be told besides the keys of the run file, with help texts.

    Raises:
        InputError: for unknown keys, wrong types and impossible values; each line of its text names a key, its value
            and what is allowed.
    """
    parser = _parser(f"python -m geochip.{command}", description)
    if files is not None:
        parser.add_argument("files", nargs="*", type=str, help=files)
    switches = switches or {}
    if {"-h", "--help"} & set(argv):
        for name, text in switches.items():
            parser.add_argument(f"--{name}", action="store_true", help=text)
    # No keys of the run file, so that --print_config does not print them.
    given = frozenset(name for name in switches if f"--{name}" in argv)
    argv = [word for word in argv if word not in {f"--{name}" for name in given}]
    # The bare flag prints the comments too: they are where a person learns what a key means.
    argv = ["--print_config=comments" if word == "--print_config" else word for word in argv]
    for path in _named_run_files(argv):
        check_run_file(path)
    try:
        namespace = parser.parse_args(list(argv))
    except ArgumentError as error:
        raise InputError(_explain(str(error))) from None
    names = tuple(namespace.pop("files", None) or ())
    config = parser.instantiate(namespace)
    whole = RunConfig(**{field.name: config[field.name] for field in fields(RunConfig)})
    return CommandLine(config=whole, files=names, switches=given)


def _named_run_files(argv: Sequence[str]) -> list[Path]:
    pairs = zip(argv, [*argv[1:], ""], strict=False)
    named = [
        word.removeprefix("--config=") if word.startswith("--config=") else following
        for word, following in pairs
        if word == "--config" or word.startswith("--config=")
    ]
    return [path for path in map(Path, named) if path.is_file()]


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise InputError(
                    f"{key}: stands twice in the run file (line {key_node.start_mark.line + 1}); join them"
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def check_run_file(path: Path) -> None:
    """See that a run file has the shape of one; values are judged later, by jsonargparse and the dataclasses.

    Raises:
        InputError: with a line for each key that does not exist, or for a section that is none.
    """
    try:
        document = yaml.load(path.read_text(), _UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {path} is no valid YAML: {_one_line(str(error))}") from None
    if not isinstance(document, dict) or not document:
        raise InputError(f"--config: {path} holds no keys; see --print_config for those that there are")
    faults = _faults_of(document, RunConfig)
    if faults:
        raise InputError("\n".join(faults))


def _faults_of(document: Mapping[Any, Any], section: type, prefix: str = "") -> list[str]:
    """A line for each key of a section, or of the sections in it, that does not exist or is no section."""
    types = {field.name: field.type for field in fields(section)}
    faults = []
    for name, value in document.items():
        key = f"{prefix}{name}"
        if name not in types:
            faults.append(_no_such_key(key))
        elif isinstance(inner := types[name], type) and is_dataclass(inner):
            if isinstance(value, dict):
                faults += _faults_of(value, inner, f"{key}.")
            else:
                shown = "nothing" if value is None else repr(value)
                faults.append(f"{key}: {shown} is not allowed: must be {_expected(key)}; or leave it out")
    return faults


def _no_such_key(key: str) -> str:
    section, _, name = key.rpartition(".")
    known = [known for known in config_keys() if section and known.startswith(f"{section}.")]
    if known:
        # Within the section: its name, which all of them share, would make all of them alike.
        close = [f"{section}.{leaf}" for leaf in get_close_matches(name, [key.split(".")[-1] for key in known], n=1)]
    else:
        known = [field.name for field in fields(RunConfig)]
        close = get_close_matches(key, config_keys(), n=1, cutoff=0.8)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    return f"{key}: there is no such key; {hint}"


def _parser(prog: str, description: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="the run file (YAML); flags after it override its keys")
    parser.add_class_arguments(RunConfig, None)
    return parser


def config_keys(section: type = RunConfig, prefix: str = "") -> list[str]:
    """All keys of the run file, dotted, in the order of the dataclasses."""
    keys: list[str] = []
    for field in fields(section):
        if isinstance(field.type, type) and is_dataclass(field.type):
            keys += config_keys(field.type, f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def _explain(message: str) -> str:
    """Put jsonargparse's message into one line that names the key, the value and what is allowed."""
    if found := re.search(r"unrecognized arguments: --?([\w.-]+)", message):
        return _no_such_key(found[1])
    if found := re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL):
        key, reason = found.groups()
        if key == "config":
            return f"--config: {_one_line(reason)}; give the path of a run file"
        if wrong := re.search(r"(?:Got|Given) value: (.*)", reason, re.DOTALL):
            # YAML makes a number of 12:00:00, and of an account's name that is all digits.
            quotes = "; put it in quotes" if "value type: <class 'int'>" in reason and "text" in _expected(key) else ""
            return f"{key}: {_one_line(wrong[1])!r} is not allowed: must be {_expected(key)}{quotes}"
        return f"{key}: {_one_line(reason)}"
    return _one_line(message)


def _expected(key: str) -> str:
    """What a key takes, in words."""
    annotation: Any = RunConfig
    for name in key.split("."):
        annotation = next((field.type for field in fields(annotation) if field.name == name), Any)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return f"a section with the keys {', '.join(field.name for field in fields(annotation))}"
    words = str(annotation).replace("typing.", "")
    if isinstance(annotation, type):
        words = annotation.__name__
    replacements = {
        r"tuple\[int, \.\.\.\]": "a list of whole numbers", r"tuple\[str, \.\.\.\]": "a list of names",
        r"tuple\[int, int\]": "a list of two whole numbers",
        r"dict\[str, float\]": "a mapping such as {name: number}",
        r"dict\[str \| int, str\]": "a mapping such as {value: name}",
        r"tuple\[str \| int \| float \| bool \| None, \.\.\.\]": "a list of values",
        r"\bint\b": "a whole number", r"\bfloat\b": "a number", r"\bstr\b": "text", r"\bbool\b": "true or false",
        r"\bNone\b": "null", r"\bLiteral\[(.*?)\]": r"one of \1",
        r" \| ": " or ",
    }  # fmt: skip
    for pattern, word in replacements.items():
        words = re.sub(pattern, word, words)
    return words


def _one_line(text: str) -> str:
    return " ".join(text.split())
