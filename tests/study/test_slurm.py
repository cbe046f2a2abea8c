"""SLURM's own daemons on this machine, where they are installed: arrays, requeueing at the signal, the exact resume."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from adadpo_lightning.study.directory import status_of
from adadpo_lightning.study.grid import Arm, jobs_of
from adadpo_lightning.study.jobs import run_study
from adadpo_lightning.study.slurm import write_slurm
from tests.support.studies import LONG, assert_cells_are_the_same, first_checkpoint, make

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin"

pytestmark = pytest.mark.slow

CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A controller and one node; the environment in which SLURM's commands find them."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)")
    if os.getuid() != 0:
        pytest.skip("slurmd needs root")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    ports = free_ports(2)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=ports))
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "seed-file", "pid-file", "log-file")]
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    running = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}.out").open("w") as output:
                running.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            time.sleep(1)
        until(lambda: "idle" in slurm(environment, "sinfo", "--noheader", "--format=%T"), 60)
        yield environment
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def slurm(environment, *command):
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def until(reached, seconds):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_an_array_whose_job_is_requeued_at_its_signal_ends_the_same(tmp_path, model_dir, cluster, monkeypatch):
    """The signal comes in the middle of a run; `static` depends on that run and must wait for its second attempt."""
    arms = {"adadpo": Arm("adadpo"), "static": Arm("adadpo", coefficient_of="adadpo")}
    study = make(tmp_path, tmp_path / "study", model_dir, arms=arms, **LONG)
    expected = make(tmp_path, tmp_path / "expected", model_dir, **LONG)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_study(expected, 1) == 0

    script, *_ = write_slurm(study, str(tmp_path / "submit.sh"), sys.executable)
    options = f"--requeue --open-mode=append --output={tmp_path}/%A_%a.log --signal=SIGUSR1@60 --time=10"
    slurm({**cluster, "SBATCH_OPTIONS": options}, "bash", str(script))
    first_checkpoint(study)
    job = slurm(cluster, "squeue", "--noheader", "--states=running", "--format=%F_%K").strip()
    slurm(cluster, "scancel", "--signal=USR1", job)

    def requeued():  # of the same job, once its first attempt has ended
        shown = slurm(cluster, "scontrol", "show", "job", job)
        return "Restarts=1" in shown and "Reason=BeginTime" in shown

    until(requeued, 60)
    # SLURM would wait two minutes; within the same second the node still refuses the first attempt's credential.
    slurm(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now+5")
    until(lambda: not slurm(cluster, "squeue", "--noheader").strip(), 240)
    assert [status_of(study, each) for each in jobs_of(study)] == ["done", "done"]
    log = (tmp_path / f"{job}.log").read_text()
    assert "SIGUSR1: saved" in log
    assert_cells_are_the_same(study, expected, jobs_of(expected))
