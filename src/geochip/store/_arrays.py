"""How geochip lays arrays out in Zarr v3, and opens them for pixels.

zarr-python makes the metadata and writes the small arrays. The pixels go through tensorstore: it writes a shard to a
temporary file, flushes it to disk and renames it, so that a killed process leaves no torn shard, and it checks the
crc32c of what it reads.

zarr is imported where it is used: workers, which only handle pixels, would otherwise start a sixth of a second later.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tensorstore

from geochip.config import IGNORE

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

    Text becomes Zarr's variable-length string, the one type of text that opens without a warning.
    """
    text = not isinstance(values, np.ndarray)
    array = np.array(list(values), dtype=np.dtypes.StringDType()) if text else np.asarray(values)
    group.create_array(
        name,
        shape=array.shape,
        dtype=str if text else array.dtype,
        chunks=tuple(max(size, 1) for size in array.shape),
        chunk_key_encoding=_CHUNK_KEYS,
        dimension_names=tuple(dims),
        attributes=dict(attributes or {}),
        # A chunk of zeros is written like any other: a missing file always means work that was not done.
        config={"write_empty_chunks": True},
        overwrite=True,
    )[...] = array


def open_tensorstore(path: Path, *, threads: int | None = None, sync: bool = True) -> Any:
    """Open an array for its pixels: a `tensorstore.TensorStore`.

    Args:
        path: the array.
        threads: threads that encode and decode, besides the caller's; None: as many as there are CPUs, which is not
            meant for a process that shares its CPUs with others of its kind.
        sync: flush what is written to the disk, and only then give it its name.

    tensorstore aborts in a process that was forked after it was opened: open where you read or write, never before.

    Raises:
        FileNotFoundError: when there is no array.
    """
    if not (path / "zarr.json").is_file():
        raise FileNotFoundError(path)
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
    return tensorstore.open(spec, open=True).result()


def consolidate(path: Path) -> None:
    """Gather all metadata in the root's zarr.json, so that a store opens with one read."""
    import zarr

    with warnings.catch_warnings():
        # That consolidated metadata is no part of the v3 specification concerns no reader: it is an extra.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(str(path), zarr_format=3)


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Attributes of a store's root group; None when there is no Zarr v3 group."""
    try:
        document = json.loads((path / "zarr.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    if document.get("zarr_format") != 3 or document.get("node_type") != "group":
        return None
    attributes: dict[str, Any] = document.get("attributes", {})
    return attributes
