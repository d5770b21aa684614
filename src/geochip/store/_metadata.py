"""What the zarr.json files of geochip's stores must hold, and reading them as what may be damaged.

Whatever opens an array goes through here first: zarr-python raises an error of its own for each kind of damage, and
tensorstore ends the process for a chunk that no memory can hold. A path that a person or a disk put in the place of a
file is looked at before it is opened: a named pipe would make its reader wait for ever.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np

from geochip.errors import DamagedError, WorkError
from geochip.files import read_regular, require_regular

_T = TypeVar("_T")

# What Blosc compresses at once, and so the most that a chunk of geochip's ever had.
_LARGEST_CHUNK = 2**31

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


@dataclass(frozen=True, kw_only=True)
class GroupDocument:
    """The zarr.json of a group; what it gathers of the arrays below it is passed over."""

    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GatheredDocument:
    """The metadata that a root gathers of all groups and arrays below it, by their paths."""

    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RootDocument:
    """As far as a root tells what is below it; None in one that is about to be gathered."""

    consolidated_metadata: GatheredDocument | None = None


@dataclass(frozen=True, kw_only=True)
class _ChunkShape:
    chunk_shape: list[Annotated[int, msgspec.Meta(ge=1, le=2**62)]]


@dataclass(frozen=True, kw_only=True)
class _ChunkGrid:
    name: Literal["regular"]
    configuration: _ChunkShape


@dataclass(frozen=True, kw_only=True)
class _Codec:
    name: str
    configuration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ArrayDocument:
    """The zarr.json of an array."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[Size]
    data_type: str
    chunk_grid: _ChunkGrid
    codecs: list[_Codec]

    def __post_init__(self) -> None:
        """See that shapes go together and that memory can hold a chunk."""
        chunk = self.chunk_grid.configuration.chunk_shape
        if len(chunk) != len(self.shape):
            raise ValueError(f"a shape of {len(self.shape)} axes with chunks of {len(chunk)}")
        if math.prod(self.inner_chunk) * self.item_bytes > _LARGEST_CHUNK:
            raise ValueError(f"chunks of {self.inner_chunk} {self.data_type}, more than memory can hold")

    @property
    def item_bytes(self) -> int:
        """Bytes of an element; of a text, what it takes to point to it."""
        try:
            return 8 if self.data_type == "string" else np.dtype(self.data_type).itemsize
        except TypeError:
            raise ValueError(f"no type of data is called {self.data_type!r}") from None

    @property
    def chunk_shape(self) -> list[int]:
        """Shape of what is one file."""
        return list(self.chunk_grid.configuration.chunk_shape)

    @property
    def inner_chunk(self) -> list[int]:
        """Shape of what is compressed as one: of a shard its parts."""
        if self.codecs and self.codecs[0].name == "sharding_indexed":
            inner = self.codecs[0].configuration.get("chunk_shape")
            if not isinstance(inner, list) or not all(type(size) is int and size > 0 for size in inner):
                raise ValueError(f"shards of chunks of {inner}")
            return list(inner)
        return self.chunk_shape


def read_metadata(file: Path, kind: type[_T], remedy: str) -> _T:
    """Read one zarr.json.

    Args:
        file: its path.
        kind: what it must hold.
        remedy: what to do when it does not.

    Raises:
        DamagedError: when it is not there, or holds something else.
    """
    try:
        data = read_regular(file)
    except OSError as error:
        raise DamagedError(f"{_not_there(file, error)}; {remedy}") from None
    try:
        # Not as `geochip.documents` does: what a root has gathered is megabytes, and passed over here.
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        fault = f"{error}" if data.strip() else "it is empty"
        raise DamagedError(f"{file} is damaged ({fault}); {remedy}") from None


def require_file(file: Path, remedy: str) -> os.stat_result:
    """See that a file of a store is there and one.

    Raises:
        DamagedError: when it is not.
    """
    try:
        return require_regular(file)
    except OSError as error:
        raise DamagedError(f"{_not_there(file, error)}; {remedy}") from None


def is_file(file: Path) -> bool:
    """Whether a file of a store is there: a regular one, and not empty."""
    try:
        return require_regular(file).st_size > 0
    except OSError:
        return False


def make_way_for(file: Path) -> None:
    """Remove what stands in the place of a block or shard that is about to be written.

    tensorstore reads what is there, where a chunk hangs over the array's edge, before it replaces it: it would fail by
    one that is damaged, and wait for ever for a named pipe. One that is not written after all counts as lost.

    Raises:
        WorkError: when it is a directory, whose content may be somebody's.
    """
    if file.is_dir() and not file.is_symlink():
        raise WorkError(f"{file} is a directory, where a file of the store belongs; move it away and run again")
    file.unlink(missing_ok=True)


def _not_there(file: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{file} is not there" if not file.is_symlink() else f"{file} is a symbolic link to nothing"
    return f"{file} cannot be read ({error.strerror})"
