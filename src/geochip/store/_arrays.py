"""How geochip lays arrays out in Zarr v3, and opens them for pixels.

zarr-python makes the metadata and writes the small arrays. The pixels go through tensorstore: it writes a shard to a
temporary file, flushes it to disk and renames it, so that a killed process leaves no torn shard, and it checks the
crc32c of what it reads.

zarr is imported where it is used: workers, which only handle pixels, would otherwise start a sixth of a second later.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tensorstore

from geochip.config import IGNORE
from geochip.documents import as_document
from geochip.errors import DamagedError
from geochip.store._metadata import ArrayDocument, GroupDocument, read_metadata, require_file
from geochip.store.journal import journal_path

if TYPE_CHECKING:
    import zarr

FORMAT_VERSION = 1

# No directory for every shard: a split of any size is one flat directory.
_CHUNK_KEYS: Any = {"name": "default", "separator": "."}


def class_flags(class_names: Sequence[str], last: str) -> dict[str, Any]:
    """Attributes that say what class ids mean, after the CF conventions 1.11, section 3.5; `last` is what 255 means."""
    return {
        "flag_values": [*range(len(class_names)), IGNORE],
        "flag_meanings": " ".join("_".join(name.split()) for name in (*class_names, last)),
    }


def create_array(
    group: "zarr.Group",
    name: str,
    *,
    shape: tuple[int, ...],
    dtype: str,
    dims: Sequence[str],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
    fill_value: float,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Create the metadata of an array of pixels; no chunk is written.

    Chunks are compressed by Blosc (LZ4 after a bit shuffle: 1.74 to 1 on 11-bit imagery, decoded at 2.2 GB/s) and
    carry a crc32c.

    Args:
        group: where to create it.
        name: its name.
        shape: its shape; empty axes are allowed.
        dtype: NumPy name of its type.
        dims: a name for each axis.
        chunks: shape of what is compressed and read as one.
        shards: shape of what is one file, a multiple of `chunks`; None: every chunk is a file.
        fill_value: what a chunk that was never written reads as.
        attributes: the array's attributes.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    item = np.dtype(dtype).itemsize
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=[BloscCodec(typesize=item, cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        fill_value=fill_value,
        chunk_key_encoding=_CHUNK_KEYS,
        dimension_names=tuple(dims),
        attributes=dict(attributes or {}),
    )


def write_small(
    group: "zarr.Group",
    name: str,
    values: npt.NDArray[Any] | Sequence[str],
    dims: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole array of numbers or text as one chunk, replacing what was there.

    Text becomes Zarr's variable-length string, the one type of text that opens without a warning. The chunk carries a
    crc32c, as pixels do.
    """
    from zarr.codecs import Crc32cCodec, ZstdCodec

    text = not isinstance(values, np.ndarray)
    array = np.array(list(values), dtype=np.dtypes.StringDType()) if text else np.asarray(values)
    group.create_array(
        name,
        shape=array.shape,
        dtype=str if text else array.dtype,
        chunks=tuple(max(size, 1) for size in array.shape),
        compressors=[ZstdCodec(), Crc32cCodec()],
        chunk_key_encoding=_CHUNK_KEYS,
        dimension_names=tuple(dims),
        attributes=dict(attributes or {}),
        # A chunk of zeros is written like any other: a missing file always means work that was not done.
        config={"write_empty_chunks": True},
        overwrite=True,
    )[...] = array


def read_small(
    path: Path, remedy: str, *, shape: tuple[int | None, ...] | None = None, kind: str | None = None
) -> npt.NDArray[Any]:
    """Read a whole array that `write_small` wrote.

    Args:
        path: the array.
        remedy: what to do when it is damaged.
        shape: what it must have; None for an axis of any length.
        kind: NumPy's letter for the kind of its type ("T" for text); None: any.

    Raises:
        DamagedError: when it is not there, cannot be read, or is another one.
    """
    import zarr

    document = read_metadata(path / "zarr.json", ArrayDocument, remedy)
    found = tuple(document.shape)
    if shape is not None and (
        len(found) != len(shape) or any(want not in (None, is_) for want, is_ in zip(shape, found, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DamagedError(f"{path} is damaged (its shape is {list(found)}, not [{wanted}]); {remedy}")
    if document.chunk_shape != [max(size, 1) for size in found]:
        raise DamagedError(f"{path} is damaged (it has chunks of {document.chunk_shape}); {remedy}")
    chunk = path / f"c{'.0' * len(found)}"
    require_file(chunk, remedy)
    try:
        values = np.asarray(zarr.open_array(str(path), mode="r", zarr_format=3)[...])
    except Exception as error:  # each codec has errors of its own
        raise DamagedError(f"{chunk} is damaged ({' '.join(str(error).split())}); {remedy}") from None
    if kind is not None and values.dtype.kind != kind:
        raise DamagedError(f"{path} is damaged (it holds {values.dtype}); {remedy}")
    return values


def open_tensorstore(path: Path, remedy: str, *, threads: int | None = None, sync: bool = True) -> Any:
    """Open an array for its pixels: a `tensorstore.TensorStore`.

    Args:
        path: the array.
        remedy: what to do when its metadata are damaged.
        threads: threads that encode and decode, besides the caller's; None: as many as there are CPUs, which is not
            meant for a process that shares its CPUs with others of its kind.
        sync: flush what is written to the disk, and only then give it its name.

    tensorstore aborts in a process that was forked after it was opened: open where you read or write, never before.

    Raises:
        DamagedError: when there is no array, or one that cannot be opened.
    """
    read_metadata(path / "zarr.json", ArrayDocument, remedy)
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path.absolute()}/"},
        # Chunks that equal the fill value are stored too: a missing one is then always one that was not written.
        "store_data_equal_to_fill_value": True,
        "context": {
            "cache_pool": {"total_bytes_limit": 0},
            "file_io_sync": sync,
            **({} if threads is None else {"data_copy_concurrency": {"limit": threads}}),
        },
    }
    try:
        return tensorstore.open(spec, open=True).result()
    except ValueError as error:
        raise DamagedError(f"{path / 'zarr.json'} is damaged ({in_short(error)}); {remedy}") from None


def in_short(error: Exception) -> str:
    """What tensorstore says, in one line and without how it was asked."""
    return " ".join(str(error).split()).split(" [tensorstore_spec=")[0]


def consolidate(path: Path) -> None:
    """Gather all metadata in the root's zarr.json, so that a store opens with one read."""
    import zarr

    with warnings.catch_warnings():
        # That consolidated metadata is no part of the v3 specification concerns no reader: it is an extra.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(str(path), zarr_format=3)


def read_root(store: Path, kind: type, marks: str, remedy: str) -> dict[str, Any] | None:
    """Attributes of a store's root group, as what they must be.

    Args:
        store: the store.
        kind: the dataclass that says what they must hold.
        marks: an attribute that no other store has.
        remedy: what to do when they are damaged.

    Returns:
        All of them; None when there is no store of this kind.

    Raises:
        DamagedError: when there is one whose root is damaged.
    """
    file = store / "zarr.json"
    # A journal beside it says that there is, or was, one.
    ours = journal_path(store).is_file() and store.is_dir()
    if not ours and not file.is_file():
        return None
    attributes = read_metadata(file, GroupDocument, remedy).attributes
    if not ours and marks not in attributes:
        return None
    version = attributes.get("format_version")
    if type(version) is not int or version == FORMAT_VERSION:
        # One of another version may hold anything.
        as_document(attributes, kind, f"the attributes in {file}", remedy)
    return attributes
