"""The one way in which the package speaks to the user."""

import logging
import subprocess
import sys

import pytest
from rich.text import Text

from adadpo_lightning import log


@pytest.fixture
def other_rank(monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)


def test_levels_go_to_standard_error_with_their_names(capsys):
    log.info("resumed")
    log.warn("slower than it could be")
    log.error("a rank is gone")
    assert capsys.readouterr() == ("", "resumed\nwarning: slower than it could be\nerror: a rank is gone\n")


def test_messages_reach_handlers_of_the_program(caplog):
    with caplog.at_level("INFO"):
        log.info("100 % [brackets]")
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("adadpo_lightning", "100 % [brackets]")]


def test_a_program_with_its_own_stream_gets_them_there_alone(capsys, tmp_path):
    with (tmp_path / "log").open("w") as file:
        handler = logging.StreamHandler(file)
        logging.getLogger().addHandler(handler)
        log.warn("once")
        logging.getLogger().removeHandler(handler)
    assert (tmp_path / "log").read_text() == "once\n"
    assert capsys.readouterr().err == ""


def test_other_ranks_speak_only_of_themselves(other_rank, capsys):
    log.info("for all")
    log.show("shown")
    log.error("this rank stops", every_rank=True)
    assert capsys.readouterr() == ("", "error: this rank stops\n")


def test_tables_and_lines_are_output(capsys):
    log.show("step 1")
    log.show(Text("table"))
    assert capsys.readouterr() == ("step 1\ntable\n", "")


def test_the_rank_before_lightning_is_imported():
    code = "import sys; from adadpo_lightning import log; print(log.is_rank_zero(), 'lightning' in sys.modules)"
    for rank, first in (("0", "True"), ("3", "False")):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"RANK": rank, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert run.stdout.split() == [first, "False"], run.stderr
