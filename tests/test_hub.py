"""A hub that gives no answer costs seconds and one line, and its cache is still used."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import constants, hf_hub_download

from adadpo_lightning import compat, hub
from adadpo_lightning.data.tokenizer import read_tokenizer
from adadpo_lightning.errors import UserError


@pytest.fixture
def online(monkeypatch):
    """No offline mode, and nothing that an earlier test has found out."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(compat, "work_offline", lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True))
    for once in (hub.silence, hub._say):
        once.cache_clear()
    yield monkeypatch
    for once in (hub.silence, hub._say):
        once.cache_clear()


@pytest.fixture
def refusing(online):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    online.setattr(constants, "ENDPOINT", endpoint)
    return endpoint


def test_a_refused_connection(refusing, capsys):
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_tokenizer("org/none")
    assert time.monotonic() - begun < 5
    message = str(caught.value)
    assert f"{refusing} cannot be reached ([Errno 111] Connection refused; HF_HUB_OFFLINE=1 does not ask)" in message
    assert "the local cache has no 'org/none'" in message
    assert "\n" not in message
    assert capsys.readouterr().err == ""


def test_a_hub_that_never_answers(online):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        online.setattr(hub, "TIMEOUT", 0.3)
        begun = time.monotonic()
        assert "cannot be reached" in hub.silence()
        assert time.monotonic() - begun < 3


def test_a_name_that_takes_long_to_look_up(online):
    online.setattr(hub, "_ask", lambda endpoint: time.sleep(2))
    online.setattr(hub, "TIMEOUT", 0.1)
    begun = time.monotonic()
    assert "no answer within 0.1 s" in hub.silence()
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_any_answer_is_an_answer(online, status):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub.silence() is None
        server.shutdown()


def test_what_is_cached_is_used_and_said_once(refusing, tmp_path, capsys):
    revision = "0" * 40
    folder = tmp_path / "models--org--cached"
    for part, text in (("snapshots/" + revision + "/config.json", "{}"), ("refs/main", revision)):
        (folder / part).parent.mkdir(parents=True)
        (folder / part).write_text(text)
    with hub.loading("org/cached"):
        assert hf_hub_download("org/cached", "config.json", cache_dir=tmp_path)
    with hub.loading("org/cached"):
        pass
    assert capsys.readouterr().err.count("using what the local cache has") == 1


def test_local_paths_ask_nobody(refusing, tmp_path):
    with hub.loading(str(tmp_path)):
        pass
    with pytest.raises(OSError, match=r"^broken$"), hub.loading(str(tmp_path)):
        raise OSError("broken")
    assert hub.silence.cache_info().currsize == 0


def test_offline_mode_is_named(online):
    online.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"offline mode is on \(HF_HUB_OFFLINE\), and the local cache has no 'org/none'"
    ):
        read_tokenizer("org/none")


def test_what_was_found_and_is_wrong_keeps_its_message(refusing):
    with pytest.raises(ValueError, match=r"^bad config$"), hub.loading("org/cached"):
        raise ValueError("bad config")


@pytest.mark.slow
def test_a_run_says_it_in_one_line(refusing, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": refusing, "HF_HOME": str(tmp_path / "hf")}
    args = ["fit", "--model.policy.path=org/none", f"--data.train={tmp_path / 'pairs.jsonl'}", "--model.loss=dpo"]
    done = subprocess.run(
        [sys.executable, "-m", "adadpo_lightning", *args, f"--output_dir={tmp_path / 'out'}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Retrying" not in done.stderr
    assert sum("cannot be reached" in line for line in done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
