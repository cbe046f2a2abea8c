"""The registry: a new command is one file or one entry point, and the top-level help imports nothing heavy."""

import errno
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import pytest

from adadpo_lightning import __version__
from adadpo_lightning.cli import app, main, registry
from adadpo_lightning.cli.registry import commands

COMMAND = '''"""Say hello."""


def add_arguments(parser):
    """Add the name."""
    parser.add_argument("--name", type=str, default="[/inst]")


def run(config, parser):
    """Print it."""
    print(f"hello {config.name}")
'''


def test_every_command_has_a_help_line_and_defines_what_a_command_is():
    found = commands()
    assert {"fit", "validate", "test", "predict", "inspect-data", "from-trl", "study"} <= set(found)
    for entry in found.values():
        assert entry.help.endswith("."), entry.name
        module = entry.load()
        assert callable(module.add_arguments)
        assert callable(module.run)


def test_a_new_command_is_one_file(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "commands"
    shutil.copytree(registry.FOLDER, folder)
    (folder / "say_hello.py").write_text(COMMAND)
    monkeypatch.setattr(registry, "FOLDER", folder)
    monkeypatch.setattr("adadpo_lightning.cli.commands.__path__", [str(folder)])
    assert "  say-hello     Say hello.\n" in app.usage()
    assert main(["say-hello", "--name=you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    monkeypatch.delitem(sys.modules, "adadpo_lightning.cli.commands.say_hello")


def test_another_package_brings_a_command_by_an_entry_point(tmp_path, monkeypatch, capsys):
    (tmp_path / "greeting.py").write_text(COMMAND)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = EntryPoint("greet", "greeting", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [found] if group == registry.ENTRY_POINTS else [])
    assert "  greet         Command of the package greeting.\n" in app.usage()
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello [/inst]\n"
    assert main(["greet", "--nmae=x"]) == 2
    assert "greet --help lists every option" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_help_of_the_program_imports_nothing_heavy(arguments):
    code = f"import sys; from adadpo_lightning.cli import main; main({arguments}); print(sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "  losses        Table of the registered losses" in printed
    assert not [
        name for name in ("torch", "lightning", "jsonargparse", "transformers", "numpy") if f"'{name}'" in printed
    ]


def test_the_help_of_the_program_is_fast():
    begun = time.process_time()
    app.usage()
    assert time.process_time() - begun < 0.15


def test_a_config_imports_nothing_of_the_denylist(capsys):
    assert main(["fit", "--model.policy.path=x", "--model.loss=os.system"]) == 2
    assert "Importing 'os.system' is not allowed" in capsys.readouterr().err


def test_help_and_errors_survive_an_ascii_locale(tmp_path):
    """A config with text beyond ASCII is read, and what cannot be shown is escaped."""
    (tmp_path / "naïve.yaml").write_text("data: {train: שלום}\n", encoding="utf-8")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": ""}
    command = [sys.executable, "-m", "adadpo_lightning", "losses", "--config", str(tmp_path / "naïve.yaml")]
    ended = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert ended.returncode == 2, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"error: " in ended.stderr
    ended = subprocess.run([*command[:3], "losses"], capture_output=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr


def test_names_of_files_are_read_in_an_ascii_locale(tmp_path):
    """PYTHONUTF8=0 alone makes Python read them as ASCII."""
    folder = tmp_path / "läufe"
    folder.mkdir()
    (folder / "wo.jsonl").write_text("{")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PATH": ""}
    command = [sys.executable, "-m", "adadpo_lightning", "plot", str(folder / "wo.jsonl")]
    ended = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert ended.returncode == 2, ended.stderr
    assert b"l\\xe4ufe/wo.jsonl: expected the output directory of a run, found a file" in ended.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adadpo-lightning {__version__}\n"


def broken_command(monkeypatch, error):
    class Broken:
        """Fails."""

        def add_arguments(self, parser):
            pass

        def run(self, config, parser):
            raise error

    entry = registry.Entry("broken", "", Broken)
    monkeypatch.setattr(app, "find_command", lambda name: entry)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "error: /runs/x: there is no room to write (No space left on device); free some disk space"),
        (errno.EROFS, "error: /runs/x: the system refuses to read or write (Read-only file system); change its"),
        (errno.EACCES, "error: /runs/x: the system refuses to read or write (Permission denied); change its"),
    ],
)
def test_what_the_disk_refuses_is_no_traceback(monkeypatch, capsys, number, message):
    broken_command(monkeypatch, OSError(number, os.strerror(number), "/runs/x"))
    assert main(["broken"]) == 2
    assert capsys.readouterr().err.startswith(message)
    with pytest.raises(OSError, match="/runs/x"):
        main(["broken", "--debug"])


def test_other_errors_of_the_system_are_faults_of_the_program(monkeypatch):
    broken_command(monkeypatch, OSError(errno.EBADF, os.strerror(errno.EBADF), "/runs/x"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["broken"])
