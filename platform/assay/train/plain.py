"""Checkpoints read as data: of a pickle in them only what ours are made of is loaded.

torch.distributed.checkpoint pickles its index and whatever is no tensor. A checkpoint may come from
object storage, where others may write too, so that nothing in it may be run.
"""

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_ALLOWED = {("torch.distributed.checkpoint.metadata", name) for name in metadata.__all__} | {
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
}
"""What the index of a checkpoint is made of, besides types of numbers."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, as no checkpoint of ours does")
        return super().find_class(module, name)


class PlainReader(FileSystemReader):
    """Reads a checkpoint's index without running anything in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index.

        Raises:
            pickle.UnpicklingError: it holds more than ours do.
        """
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            index = _Unpickler(file).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(index).__name__} and no index")
        for place in (index.storage_data or {}).values():
            if "/" in place.relative_path:
                raise pickle.UnpicklingError(f"it names the file {place.relative_path[:80]!r}")
        if index.storage_meta is not None:
            index.storage_meta.load_id = self.load_id
        return index


class PlainPlanner(DefaultLoadPlanner):
    """Loads what is no tensor only where it is plain values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Load one value.

        Raises:
            pickle.UnpicklingError: it is more than plain values.
        """
        torch.load(value, weights_only=True)  # what passes is safe to load once more
        value.seek(0)
        super().load_bytes(read_item, value)
