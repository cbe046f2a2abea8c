"""Commands of a study or of rounds, and workers that tokenize, end when the process that started them is killed."""

import os
import subprocess
import sys
import time

import pytest

from adadpo_lightning import parent

# As the child of `Processes` that this package's command line is, without the seconds of its start.
CHILD = """
import time
from adadpo_lightning.parent import follow_parent
follow_parent()
print("on", flush=True)
time.sleep(60)
"""
PARENT = f"""
import sys
from adadpo_lightning.study.processes import Processes
Processes().run([sys.executable, "-c", {CHILD!r}])
"""


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# As the workers that tokenize.
POOL = """
import multiprocessing as mp, os, time
from adadpo_lightning.parent import end_with

def work(starter):
    end_with(starter)
    print("on", flush=True)
    time.sleep(60)

mp.get_context("fork").Pool(1).map(work, [os.getpid()])
"""


@pytest.mark.parametrize("code", [PARENT, POOL], ids=["command", "worker"])
def test_a_child_ends_after_its_parent_was_killed(code):
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    (child,) = children(process.pid)
    assert is_running(child)
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(child)


def test_the_variable_is_not_passed_on(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setenv(parent.VARIABLE, str(reading))
    parent.follow_parent()
    assert parent.VARIABLE not in os.environ
    assert writing  # still open: this process goes on
