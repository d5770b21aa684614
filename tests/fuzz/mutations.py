"""Ways to break a file, a JSON document or a value; each takes the random numbers that choose how."""

import copy
import csv
import io
import json
import os
import shutil

import yaml

# Values that stand where others belong: each was once believed by some program.
ODD = (
    None, True, False, 0, 1, -1, 2, 255, 256, 1e3, 0.5, -0.0, 2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"),
    float("inf"), "", " ", "x", "0", "1e3", "null", "nan", "a\0b", "a\nb", "a;b", "{id}", "{{id}}", "{split}", "{", ".", "~", "\udcff", "ä", "a\u0308", "x" * 300, [], {}, [None], [[]], [1, None], ["a", 1], {"a": None}, {"a": 1},
    {"": ""}, [0] * 1000, [1, 2], ["train"], {"train": 1},
)  # fmt: skip
# Not for run files: as a run_dir they would be taken at their word.
ESCAPES = ("../../x", "/", "..", "/nowhere/at/all")
DIGITS = "9" * 5000


def odd_value(rng, values=(*ODD, *ESCAPES)):
    return copy.deepcopy(rng.choice(values))


def places(document, path=()):
    """The paths of all values in a tree of lists and mappings, the root's () among them."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def edit_tree(rng, document, values=(*ODD, *ESCAPES)):
    """A tree with one value dropped, replaced or nested; returns it and what was done, in words."""
    document = copy.deepcopy(document)
    path = rng.choice([path for path in places(document) if path] or [()])
    if not path:
        return odd_value(rng, values), "the whole document replaced"
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    key, where = path[-1], ".".join(map(str, path))
    how = rng.choice(["drop", "replace", "replace", "replace", "wrap", "rename", "add"])
    if how == "drop":
        del parent[key]
    elif how == "wrap":
        parent[key] = rng.choice([[parent[key]], {"a": parent[key]}, [parent[key]] * 3])
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice(["x", "", f"{key}s", "0"])] = parent.pop(key)
    elif how == "add" and isinstance(parent, dict):
        parent["added"] = odd_value(rng, values)
    else:
        parent[key] = odd_value(rng, values)
        return document, f"{where} = {_shown(parent[key])}"
    return document, f"{how} {where}"


def _shown(value):
    text = ascii(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def edit_json(rng, data):
    """Bytes of a JSON document with one thing in it changed."""
    document = json.loads(data)
    how = rng.choice(["tree"] * 8 + ["deep", "digits", "bom", "twice"])
    if how == "tree":
        document, what = edit_tree(rng, document)
        return json.dumps(document).encode("utf-8", "surrogatepass"), what
    text = json.dumps(document)
    if how == "deep":
        return b"[" * 100_000 + b"]" * 100_000, "nested 100000 deep"
    if how == "bom":
        return b"\xef\xbb\xbf" + text.encode(), "a byte order mark"
    if how == "twice":
        return (text + text).encode(), "the document twice"
    numbers = [place for place in places(document) if place and type(_at(document, place)) in (int, float)]
    if not numbers:
        return b"", "empty"
    path = rng.choice(numbers)
    _at(document, path[:-1])[path[-1]] = "@digits@"
    return json.dumps(document).replace('"@digits@"', DIGITS).encode(), f"{path} = 5000 digits"


def _at(document, path):
    for key in path:
        document = document[key]
    return document


def edit_lines(rng, data):
    """Bytes of a journal, a JSON document a line, with one line changed."""
    lines = data.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    how = rng.choice(["edit"] * 6 + ["drop", "twice", "order", "torn", "blank", "header"])
    if how == "edit":
        edited, what = edit_json(rng, lines[number])
        lines[number] = edited + b"\n"
        return b"".join(lines), f"line {number}: {what}"
    if how == "drop":
        del lines[number]
    elif how == "twice":
        lines.insert(number, lines[number])
    elif how == "order":
        rng.shuffle(lines)
    elif how == "torn":
        lines[number] = lines[number][: rng.randrange(len(lines[number]))]
    elif how == "blank":
        lines.insert(number, b"\n")
    else:
        lines[0] = rng.choice([b"{}\n", b"[]\n", b"null\n", b'"a"\n', b"7\n"])
    return b"".join(lines), f"{how}, line {number}"


def edit_yaml(rng, data):
    """Bytes of a YAML document with a value changed, or the text around one."""
    document = yaml.safe_load(data)
    how = rng.choice(["tree"] * 10 + ["text"] * 5)
    if how == "tree":
        document, what = edit_tree(rng, document, ODD)
        return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"), what
    lines = data.decode().splitlines()
    number = rng.randrange(len(lines))
    key = lines[number].split(":")[0]
    line = rng.choice([
        f"{key}:", f"{key}: ~", f"{key}: *none", f"{key}: &a 1", f"{key}: !!python/object:os.system x", f"{key}: !!binary aa",
        f"{key}: 12:00:00", f"{key}: 010", f"{key}: 0x10", f"{key}: 1e3", f"{key}: .nan", f"{key}: -.inf", f"{key}: {DIGITS}",
        f"{key}: 2001-12-14", f"{key}: yes", f"{key}: |", f"{key}: '", f"\t{key}: 1", f"{key}: [" * 50, f"{key}: {'[' * 20000}",
        f"? {key}", "? [a]\n: 1", "1: 2", "~: 1", "<<: {size: 1}", "<<: 1", "---", "...", "%YAML 9.9", "\x07", "@", f"{key} : : 1",
    ])  # fmt: skip
    lines[number] = line
    text = "\n".join(lines)
    end = rng.choice(["\n"] * 8 + ["\r\n", "\r"])
    return text.replace("\n", end).encode(), f"line {number + 1}: {_shown(line)}"


def edit_csv(rng, data):
    """Bytes of a CSV table with a cell or a column changed."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    row, col = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    how = rng.choice(["cell"] * 6 + ["drop column", "drop row", "twice", "short", "header"])
    if how == "cell":
        value = odd_value(rng)
        rows[row][col] = str(value)
        how = f"cell {row},{col} = {_shown(value)}"
    elif how == "drop column":
        rows = [one[:col] + one[col + 1 :] for one in rows]
    elif how == "drop row":
        del rows[row]
    elif how == "twice":
        rows.append(rows[row])
    elif how == "short":
        rows[row] = rows[row][:col]
    else:
        rows = rows[:1]
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice([","] * 6 + [";", "\t"])).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass"), how


def edit_bytes(rng, data):
    """Bytes with some flipped, cut, zeroed or put in their place."""
    how = rng.choice(["flip", "flip", "flip", "cut", "zeros", "empty", "garbage", "more", "latin"])
    if how in ("flip", "zeros", "latin") and data:
        changed = bytearray(data)
        start = rng.randrange(len(data))
        if how == "flip":
            changed[start] ^= 1 << rng.randrange(8)
        else:
            end = min(len(data), start + rng.choice([1, 16, 512, len(data)]))
            changed[start:end] = (b"\0" if how == "zeros" else b"\xff") * (end - start)
        return bytes(changed), f"{how} at {start}"
    if how == "cut" and data:
        end = rng.randrange(len(data))
        return data[:end], f"cut after {end} of {len(data)} bytes"
    if how == "garbage":
        return rng.randbytes(rng.choice([1, 30, 3000])), how
    if how == "more":
        return data + rng.randbytes(rng.choice([1, 300])), how
    return b"", "empty"


def replace_file(rng, path, others):
    """Put another thing at a path: a pipe, a directory, a link, another file or nothing; returns what."""
    how = rng.choice(["gone", "fifo", "directory", "dangling", "loop", "other", "other", "full directory", "link"])
    if how == "link":
        # Read through it, never written through it: what it leads to is no part of the run.
        target = path.parent / f"{path.name}.elsewhere"
        path.rename(target)
        path.symlink_to(target.name)
        return how
    was = path.read_bytes()
    if how == "other":
        other = rng.choice(others)
        data = other.read_bytes() if other.is_file() else b""
        path.write_bytes(data)
        return f"{other.name} in its place"
    path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    elif how == "full directory":
        path.mkdir()
        (path / path.name).write_bytes(was)
    elif how == "dangling":
        path.symlink_to("/nowhere/at/all")
    elif how == "loop":
        path.symlink_to(path.name)
    return how


def replace_directory(rng, path):
    """Take a directory away, put a file in its place, or a stranger into it."""
    how = rng.choice(["gone", "file", "empty", "stranger", "link"])
    if how == "stranger":
        (path / "stranger").write_text("not geochip's")
        return how
    shutil.rmtree(path)
    if how == "file":
        path.write_text("a file")
    elif how == "empty":
        path.mkdir()
    elif how == "link":
        path.symlink_to("/nowhere/at/all")
    return how
