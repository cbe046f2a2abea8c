"""One case of bad input, and what cases are made of: files, and copies of the tiny model with a change."""

import json
import shutil
from dataclasses import dataclass, field
from typing import Any

from tests.support.tiny import make_rows

GOOD = make_rows(4)
ROW = GOOD[0]
D, P, L, OPT, T = "data.", "model.policy.", "model.loss.", "model.optimizer.", "trainer."
TRAIN = "data.train"
NULL = object()  # null as a value of a JSON file


@dataclass(frozen=True)
class Case:
    """One case.

    A value of an option that is a function gets the case's own directory and the tiny model's, and returns the value.

    Args:
        name: Its name.
        options: Options that are laid over good ones of `fit`; None takes an option away.
        names: What the error has to name.
        says: What it has to say.
        command: Another command than fit.
        bare: Whether `options` are all that is given.
        slow: Whether it takes more than a second.
    """

    name: str
    options: dict[str, Any]
    names: str
    says: str
    command: str = "fit"
    bare: bool = field(default=False)
    slow: bool = field(default=False)


def good_options(folder, model):
    """Options of a run that works."""
    return {
        "output_dir": folder / "out",
        "model.policy.path": model,
        "model.loss": "adadpo",
        "data.train": rows(),
        "data.global_batch_size": 4,
        "data.micro_batch_size": 2,
        "data.max_length": 40,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.max_steps": 1,
        "trainer.enable_progress_bar": "false",
    }


def command_line(command, options, folder, model):
    """A command with options, of which some are made in a directory; an option without a name is a bare argument."""
    made = {name: value(folder, model) if callable(value) else value for name, value in options.items()}
    given = {name: value for name, value in made.items() if value is not None}
    return [command, *(f"--{name}={value}" if name else str(value) for name, value in given.items())]


def text(content, name="pairs.jsonl"):
    """A data file with this content."""

    def write(folder, model):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(*given, **columns):
    """A data file of these rows, or of good rows with some columns changed."""
    found = given or [{**row, **columns} for row in GOOD]
    return text("".join(json.dumps(row) + "\n" for row in found))


def model_with(change):
    """A copy of the tiny model, changed."""

    def write(folder, model):
        path = shutil.copytree(model, folder / "model")
        change(path)
        return path

    return write


def edit_json(name, **values):
    """Change keys of a JSON file of the model; None removes one, NULL is null."""

    def change(path):
        content = json.loads((path / name).read_text())
        for key, value in values.items():
            content.pop(key, None) if value is None else content.update({key: None if value is NULL else value})
        (path / name).write_text(json.dumps(content))

    return change


def file(name, content=""):
    def write(folder, model):
        (folder / name).write_text(content)
        return folder / name

    return write


def messages(role="user", content="a b", answer="b yes", **extra):
    chosen = [{"role": role, "content": content}, {"role": "assistant", "content": answer}]
    rejected = [{"role": role, "content": content}, {"role": "assistant", "content": "c no"}]
    return {"chosen": chosen, "rejected": rejected, **extra}


def folder_of(**files):
    """A directory with these files."""

    def write(folder, model):
        path = folder / "data"
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(content)
        return path

    return write


def link(target, name):
    """A symbolic link in the case's directory."""

    def write(folder, model):
        (folder / name).symlink_to(target)
        return folder / name

    return write
