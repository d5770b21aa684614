"""Reading the run file and the flags of a command, and telling in one line what is wrong with them.

jsonargparse does the reading, over the dataclasses of `geochip.config`; here is what it leaves to be said: all unknown
keys at once with what they may have meant, and types in words.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_dumper, set_loader, set_parsing_settings

from geochip.config import RunConfig, YamlError, by_text, in_words, read_yaml, shown, type_faults, write_yaml
from geochip.errors import InputError
from geochip.files import read_regular


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
    argv, printing = _without_print_config(_with_run_files_read(argv))
    try:
        namespace = parser.parse_args(argv)
    except ArgumentError as error:
        raise InputError(_explain(str(error), argv)) from None
    except RecursionError:
        raise InputError("a flag's value is nested too deeply") from None
    names = tuple(namespace.pop("files", None) or ())
    # What the parser lets through: null for every key, true for a number, not-a-number.
    if faults := type_faults(namespace.as_dict(), RunConfig):
        raise InputError("\n".join(faults))
    config = parser.instantiate(namespace)
    whole = RunConfig(**{field.name: config[field.name] for field in fields(RunConfig)})
    if printing is not None:
        if namespace.labels.class_map:
            # Values are compared as text; what writes the comments takes no other keys.
            namespace.labels.class_map = config.labels.class_map
        # Nulls too: without train.val_split: null, its default would be read.
        print(parser.dump(namespace, skip_unset=False, **printing), end="")
        raise SystemExit(0)
    return CommandLine(config=whole, files=names, switches=given)


def _without_print_config(argv: Sequence[str]) -> tuple[list[str], dict[str, bool] | None]:
    """Take --print_config out of a command line, and say how it is to be answered: after everything is judged."""
    asked = [word for word in argv if word.partition("=")[0] == "--print_config"]
    if not asked:
        return list(argv), None
    # The bare flag prints the comments too: they are where a person learns what a key means.
    how = asked[-1].partition("=")[2] or "comments"
    ways = {"comments": "with_comments", "skip_default": "skip_default"}
    if unknown := sorted(set(how.split(",")) - set(ways)):
        raise InputError(f"--print_config: {shown(unknown[0])} is not allowed: must be some of {', '.join(ways)}")
    return [word for word in argv if word not in asked], {ways[word]: True for word in how.split(",")}


def _with_run_files_read(argv: Sequence[str]) -> list[str]:
    """A command line in which the content of run files stands in place of their paths, in a form that is read alike."""
    words = iter(argv)
    read = []
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--config":
            path = value if equals else next(words, "")
            text = json.dumps(read_run_file(path), ensure_ascii=False)
            # Escaped as YAML does, for which JSON's pairs of surrogates are two characters.
            word = "--config=" + re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", text)
        read.append(word)
    return read


def read_run_file(path: str) -> dict[str, Any]:
    """What a run file holds, every key of which exists and has a value of its type.

    What values may be besides is judged later, by the dataclasses: a flag may take the place of one.

    Raises:
        InputError: with a line for each fault.
    """
    try:
        document = read_yaml(read_regular(path))
    except YamlError as error:
        raise InputError(f"--config: {path} cannot be read: {error}") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"--config: {shown(path)} cannot be read: {why}; give the path of a run file") from None
    if not isinstance(document, dict) or not document:
        raise InputError(f"--config: {path} holds no keys; see --print_config for those that there are")
    faults = _unknown_keys(document, RunConfig) + type_faults(document, RunConfig)
    if faults:
        raise InputError("\n".join(faults))
    if class_map := document.get("labels", {}).get("class_map"):
        # As it is handed on, in JSON, null and "null" would be one key.
        document["labels"]["class_map"] = by_text(class_map)
    return document


def _unknown_keys(document: Mapping[Any, Any], section: type, prefix: str = "") -> list[str]:
    """A line for each key of a section, or of the sections in it, that does not exist."""
    types = {field.name: field.type for field in fields(section)}
    faults = []
    for name, value in document.items():
        inner = types.get(name)
        if inner is None:
            faults.append(_no_such_key(f"{prefix}{shown(name) if name is None else name}"))
        elif isinstance(inner, type) and is_dataclass(inner) and isinstance(value, dict):
            faults += _unknown_keys(value, inner, f"{prefix}{name}.")
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
    set_dumper("yaml", write_yaml)
    set_loader("geochip", _flag_value, exceptions=(YamlError,))
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, parser_mode="geochip")
    parser.add_argument("--config", action="config", help="the run file (YAML); flags after it override its keys")
    parser.add_class_arguments(RunConfig, None)
    return parser


def _flag_value(text: str) -> Any:
    """A flag's value, or a run file that `_with_run_files_read` wrote, as YAML; {id} is a template, not a mapping."""
    value = read_yaml(text)
    nothing_in_it = isinstance(value, dict) and value and all(one is None for one in value.values())
    return text if nothing_in_it else value


def config_keys(section: type = RunConfig, prefix: str = "") -> list[str]:
    """All keys of the run file, dotted, in the order of the dataclasses."""
    keys: list[str] = []
    for field in fields(section):
        if isinstance(field.type, type) and is_dataclass(field.type):
            keys += config_keys(field.type, f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def _explain(message: str, argv: Sequence[str]) -> str:
    """Put jsonargparse's message about a flag into one line that names the key, the value and what is allowed."""
    if found := re.search(r"unrecognized arguments: --?([\w.-]+)", message):
        return _no_such_key(found[1])
    if found := re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL):
        key, reason = found.groups()
        given = [
            word.partition("=")[2] if "=" in word else following
            for word, following in zip(argv, [*argv[1:], ""], strict=True)
            if word.partition("=")[0] == f"--{key}"
        ]
        return (
            f"{key}: {shown(given[-1])} is not allowed: must be {_expected(key)}"
            if given
            else f"{key}: {_one_line(reason)}"
        )
    return _one_line(message)


def _expected(key: str) -> str:
    """What a key takes, in words."""
    annotation: Any = RunConfig
    for name in key.split("."):
        annotation = next((field.type for field in fields(annotation) if field.name == name), Any)
    return in_words(annotation)


def _one_line(text: str) -> str:
    return " ".join(text.split())
