"""A sharded checkpoint of a stranger runs no code: neither its index nor its entries."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from adadpo_lightning.checkpoints.shard_reader import load_shards
from adadpo_lightning.checkpoints.shards import read_weights, stored_weights
from adadpo_lightning.errors import UserError


class Evil:
    def __reduce__(self):
        return pytest.fail, ("code of the checkpoint ran",)


@pytest.fixture
def folder(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    dcp.save({"state_dict": weights, "lr": 0.5}, checkpoint_id=tmp_path, no_dist=True)
    return tmp_path


def test_weights_and_plain_entries_are_read(folder):
    assert set(stored_weights(folder)) == {"a", "b"}
    assert torch.equal(read_weights(folder, ["a"])["a"], torch.arange(6.0).view(2, 3))
    state = {"lr": 0.0}
    load_shards(state, folder, no_dist=True)
    assert state == {"lr": 0.5}


@pytest.mark.parametrize("index", [pickle.dumps(Evil()), b"no pickle", pickle.dumps({"a": 1}), b""])
def test_an_index_that_is_none_is_named(folder, index):
    (folder / ".metadata").write_bytes(index)
    with pytest.raises(UserError, match=r"\.metadata: (is no index|holds a dict, no index)"):
        stored_weights(folder)


def test_an_entry_that_is_no_plain_data_is_named(tmp_path):
    dcp.save({"lr": Evil()}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(UserError, match="lr holds something else than tensors and plain data"):
        load_shards({"lr": 0.0}, tmp_path, no_dist=True)
