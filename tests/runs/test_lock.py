"""One run writes to a directory at a time, and a finished one is not run again."""

import json
import multiprocessing as mp
import os
import signal
import time

import pytest

from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.lock import lock_directory
from tests.support.runs import arguments, run
from tests.support.tiny import make_rows, write_rows


def hold(folder, ready):
    with lock_directory(folder, "output_dir"):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a directory."""
    context = mp.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_refused_until_the_first_is_killed(holder, tmp_path, model_dir, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(8))
    args = arguments(model_dir, pairs, tmp_path / "out", "--trainer.max_steps=1", "--auto_resume=true")
    assert run(args) == 2
    said = capsys.readouterr().err
    assert f"out is being written by process {holder.pid} on {os.uname().nodename} since " in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert run(args) == 0

    assert run(args) == 0  # as a job system starts it once more
    assert "out holds a finished run of 1 steps: nothing to do." in capsys.readouterr().err
    assert len(list((tmp_path / "out/csv").iterdir())) == 1

    marker = tmp_path / "out/finished.json"
    ended = json.loads(marker.read_text())
    del ended["options"]["model"]["router_aux_loss_coef"]  # as a version wrote it that did not have this option
    marker.write_text(json.dumps(ended))
    assert run(args) == 0
    assert "nothing to do" in capsys.readouterr().err

    whole = pairs.read_text()
    write_rows(pairs, make_rows(12)[4:])
    assert run([a for a in args if "auto_resume" not in a] + ["--ckpt_path=last"]) == 2  # other data
    error = capsys.readouterr().err
    assert "data.train.token_ids: " in error
    assert "\nrestore what the run was started with" in error
    pairs.write_text(whole)
    assert run(args) == 0
    assert "nothing to do" in capsys.readouterr().err  # a refused attempt leaves the run finished


def test_the_lock_of_this_process_is_kept_and_released(tmp_path):
    with lock_directory(tmp_path, "output"):
        with pytest.raises(UserError, match=rf"output: .* is being written by process {os.getpid()} on "):
            lock_directory(tmp_path, "output").__enter__()
        # The refused attempt must not have released it.
        other = mp.get_context("fork").Process(target=refused, args=(tmp_path,))
        other.start()
        other.join()
        assert other.exitcode == 0
    with lock_directory(tmp_path, "output"):
        pass


def refused(folder):
    from adadpo_lightning.runs import lock

    lock._held.clear()  # what this process copied from its parent
    try:
        lock_directory(folder, "output").__enter__()
    except UserError:
        os._exit(0)
    os._exit(1)
