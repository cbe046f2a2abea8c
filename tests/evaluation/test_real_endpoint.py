"""The endpoint judge against a real server: llama-cpp-python serving the real model on this machine's loopback.

The server's package may be in another environment; ADADPO_LLAMA_PYTHON names its interpreter.
"""

import os
import socket
import subprocess
import sys
import time

import pytest

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import Comparison
from adadpo_lightning.evaluation.judges.base import build_judge
from adadpo_lightning.generation.responses import Response
from tests.support.real_model import Unavailable, gguf_file

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
PYTHON = os.environ.get("ADADPO_LLAMA_PYTHON", sys.executable)
# The model is too small to judge, so most replies have no verdict; what is tried is the exchange with the server.
TEMPLATE = """Q: What is two plus two?
A: Four.
B: Five.
Better: [[A]]

Q: What is the capital of Spain?
A: Rome.
B: Madrid.
Better: [[B]]

Q: {prompt}
A: {a}
B: {b}
Better:"""
ASKED = Comparison(Response("Name a fruit.", "An apple."), Response("Name a fruit.", "A brick."))


@pytest.fixture(scope="module")
def address():
    try:
        subprocess.run([PYTHON, "-c", "import llama_cpp.server"], check=True, capture_output=True)
        model = gguf_file()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("llama-cpp-python[server] is not installed")
    except Unavailable as error:
        pytest.skip(str(error))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "1024", "--n_threads", "1"]
    command = [PYTHON, "-m", "llama_cpp.server", "--model", model, *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(240):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def judge(address, **options):
    return build_judge("openai_compatible", model="smol", base_url=address, max_tokens=8, template=TEMPLATE, **options)


def test_verdicts_usage_and_cache(address, tmp_path):
    cache = str(tmp_path / "cache.jsonl")
    asked = judge(address, cache=cache)
    (verdict,) = asked.preferences([ASKED])
    assert verdict in (None, 0.0, 0.5, 1.0)
    usage = asked.report()["usage"]
    assert (usage["requests"], usage["retries"]) == (2, 0)
    assert usage["prompt_tokens"] > 100
    assert 0 < usage["completion_tokens"] <= 16
    again = judge(address, cache=cache)
    assert again.preferences([ASKED]) == [verdict]
    assert again.report()["usage"]["requests"] == 0


def test_a_prompt_longer_than_the_context_is_refused_at_once(address):
    long = Comparison(Response("Name a fruit.", "word " * 3000), ASKED.baseline)
    with pytest.raises(UserError, match=r"refused the request with status 400: .*maximum context length is 1024"):
        judge(address).preferences([long])
