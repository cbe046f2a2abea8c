"""What all tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # `keywords` also has the names of folders
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Two test processes share two cores, and sums in a fixed order make results repeatable."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A tiny random Llama with a chat tokenizer."""
    from tests.support.tiny import make_model_dir

    return make_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """37 pairs: no multiple of any batch size in use."""
    from tests.support.tiny import make_rows, write_rows

    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_rows(37))


@pytest.fixture(scope="session")
def real_model_dir():
    """SmolLM2-135M-Instruct in float32; tests that use it are marked `real_model`."""
    from tests.support.real_model import Unavailable, model_directory

    try:
        return model_directory()
    except Unavailable as reason:
        pytest.skip(str(reason))
