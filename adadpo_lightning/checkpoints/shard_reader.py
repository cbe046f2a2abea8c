"""Read sharded checkpoints without running code of their author: torch stores index and entries as pickles."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from adadpo_lightning.errors import UserError, first_line

INDEX = ".metadata"
RECORDS = "torch.distributed.checkpoint.metadata"
ALLOWED = {
    **dict.fromkeys(
        (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        ),
        RECORDS,
    ),
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "_get_layout": "torch.serialization",
    "Size": "torch",
    "OrderedDict": "collections",
    "PosixPath": "pathlib",
    "PurePosixPath": "pathlib",
}


class _PlainUnpickler(pickle.Unpickler):
    """Resolves the records of a checkpoint's index and torch's dtypes, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or ALLOWED.get(name) == module or (module == "pathlib._local" and ALLOWED.get(name) == "pathlib"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of shards has")


class ShardReader(FileSystemReader):
    """Torch's reader of a directory of shards, with an index that can run no code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index.

        Raises:
            UserError: If it is damaged, or holds anything else than an index.
        """
        path = Path(self.path) / INDEX
        try:
            with path.open("rb") as file:
                metadata = _PlainUnpickler(file).load()
        except Exception as error:  # a damaged pickle raises many kinds
            raise UserError(
                str(path), f"is no index of shards: {first_line(error)}", "give another checkpoint, or restore the file"
            ) from error
        if not isinstance(metadata, Metadata):
            raise UserError(str(path), f"holds a {type(metadata).__name__}, no index of shards", "restore the file")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class PlainPlanner(DefaultLoadPlanner):
    """Torch's planner, for entries that are tensors or plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Read an entry that is no tensor, once torch's safe reader has accepted it."""
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                "ckpt_path",
                f"{read_item.storage_index.fqn} holds something else than tensors and plain data",
                "give another checkpoint",
            ) from error
        value.seek(0)
        super().load_bytes(read_item, value)  # type: ignore[no-untyped-call,unused-ignore]


def load_shards(state: dict[str, Any], folder: Path, *, no_dist: bool = False) -> None:
    """Fill a state dict from a directory of shards; with several processes every rank must call this.

    Args:
        state: Tensors to fill, and plain values to replace.
        folder: The directory.
        no_dist: Read all of it in this process.

    Raises:
        UserError: If index or entries hold anything else than tensors and plain data.
    """
    try:
        load(state, storage_reader=ShardReader(folder), planner=PlainPlanner(), no_dist=no_dist)
    except CheckpointException as error:  # of all ranks, and no subclass of Exception
        for failure, _ in error.failures.values():
            if isinstance(failure, UserError):
                raise failure from error
        raise
