"""Commands in forked processes: their status and output are those of the command, and they end when they should."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from adadpo_lightning.study.forked import COMMAND, Forked, is_available
from tests.study.test_processes import children, is_running

pytestmark = pytest.mark.skipif(not is_available(), reason="needs a fork server")

RUN = """
import sys
from adadpo_lightning.study.forked import COMMAND, Forked

if __name__ == "__main__":
    Forked().run([*COMMAND, "study", f"--config={sys.argv[1]}"])
"""


@pytest.fixture
def never_read(tmp_path):
    """A config that blocks its reader, for it has no writer."""
    os.mkfifo(tmp_path / "study.yaml")
    return tmp_path / "study.yaml"


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def grandchildren(pid):
    return [each for child in children(pid) for each in children(child)]


def test_status_and_output_are_those_of_the_command(tmp_path):
    forked, log = Forked(), tmp_path / "log.txt"
    for arguments, status, said in (
        (["--version"], 0, "adadpo-lightning "),
        (["study", "--confg=a.yaml"], 2, "unrecognized arguments: --confg"),
    ):
        with log.open("w") as output:
            assert forked.run([*COMMAND, *arguments], output) == status
        assert said in log.read_text()
    with pytest.raises(ValueError, match="not a command of this package"):
        forked.run(["bash", "-c", "true"])


def test_stop_ends_what_runs_and_prevents_the_rest(never_read):
    forked, ended = Forked(), []
    before = set(grandchildren(os.getpid()))
    command = [*COMMAND, "study", f"--config={never_read}"]
    thread = threading.Thread(target=lambda: ended.append(forked.run(command)))
    thread.start()
    wait_until(lambda: set(grandchildren(os.getpid())) - before)
    assert forked.stop() == 1
    thread.join(60)
    assert ended == [-signal.SIGTERM]
    assert forked.run(command) is None


def test_a_forked_process_ends_after_its_starter_was_killed(never_read):
    starter = subprocess.Popen([sys.executable, "-c", RUN, str(never_read)])
    wait_until(lambda: grandchildren(starter.pid))
    time.sleep(0.5)  # it forks, then reads
    (child,) = grandchildren(starter.pid)
    starter.kill()
    starter.wait()
    wait_until(lambda: not is_running(child))
