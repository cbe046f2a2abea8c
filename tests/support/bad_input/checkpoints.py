"""Bad checkpoints: resumed from, validated with, exported."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from adadpo_lightning.cli import main
from tests.support.bad_input.case import (
    OPT,
    TRAIN,
    Case,
    D,
    P,
    T,
    command_line,
    file,
    folder_of,
    good_options,
    link,
    rows,
    text,
)


@cache
def run_of(model):
    """A run of two steps with a checkpoint of each, under the options that cases have."""
    folder = Path(tempfile.mkdtemp(dir=Path(model).parent))
    options = {**good_options(folder, model), T + "max_steps": 2}
    options |= {"checkpoint.every_n_train_steps": 1, "checkpoint.save_top_k": -1}
    assert main(command_line("fit", options, folder, model)) == 0
    return folder / "out"


def checkpoint(change):
    """The checkpoint of the first step, changed in place, or what is given instead."""

    def write(folder, model):
        content = torch.load(run_of(model) / "checkpoints/step1.ckpt", weights_only=True)
        changed = change(content)
        torch.save(content if changed is None else changed, folder / "x.ckpt")
        return folder / "x.ckpt"

    return write


def without(*names):
    def change(content):
        for name in names[:-1]:
            content = content[name]
        del content[names[-1]]

    return checkpoint(change)


def with_value(value, *names):
    def change(content):
        for name in names[:-1]:
            content = content[name]
        content[names[-1]] = value

    return checkpoint(change)


def changed_weight(change):
    def edit(content):
        weights = content["state_dict"]
        change(weights, next(name for name in weights if "up_proj" in name))

    return checkpoint(edit)


def resumed(name, path, names, says, **options):
    return Case(f"resume {name}", {"ckpt_path": path, T + "max_steps": 2, **options}, names, says)


def validated(name, path, names, says):
    return Case(f"validate {name}", {"ckpt_path": path, D + "val": rows()}, names, says, command="validate")


def exported(name, path, names, says, **options):
    given = {"checkpoint": path, "output": "out", **options}
    return Case(f"export {name}", given, names, says, command="export", bare=True)


RECORD = "adadpo_lightning"
MODULE = "PreferenceDataModule"
POSITION = ("loops", "fit_loop", "epoch_loop.batch_progress")
OF_FIT, FITS = "is not a checkpoint of fit: ", "does not fit the model it names"
# For each checkpoint, what `export` and what a resume says of it; None where that part is not read.
ODD = {
    "a list": (checkpoint(lambda c: [1, 2]), "was not written by", "holds a list, not a checkpoint"),
    "a tensor": (checkpoint(lambda c: torch.ones(3)), "was not written by", "holds a Tensor, not a checkpoint"),
    "an empty mapping": (checkpoint(lambda c: {}), "was not written by", f"{OF_FIT}global_step is missing"),
    "text as its file": (file("x.ckpt", "hello"), "is damaged", "is damaged"),
    "no bytes": (file("x.ckpt"), "is damaged", "is damaged"),
    "a directory": (folder_of(a="b"), "no file or directory of shards", "is damaged: it has no manifest.json"),
    "a cut file": (lambda f, m: cut_file(f, m), "is damaged", "is damaged"),
    "a link to nothing": (link("nowhere", "x.ckpt"), "no file or directory of shards", "no checkpoint"),
    "a zip file": (lambda f, m: shutil.make_archive(str(f / "x"), "zip", m), "is damaged", "is damaged"),
    "no record": (without(RECORD), "was not written by", None),
    "a list as record": (with_value([], RECORD), f"{OF_FIT}{RECORD} of its record", f"{OF_FIT}{RECORD} of its record"),
    "a record without a policy": (without(RECORD, "policy"), "cannot be read: 'policy'", None),
    "an unknown option of the policy": (with_value(1, RECORD, "policy", "nonesuch"), "argument 'nonesuch'", None),
    "a list as policy": (with_value([1], RECORD, "policy"), f"{OF_FIT}policy of its", f"{OF_FIT}policy of its"),
    "text as LoRA": (with_value("x", RECORD, "policy", "lora"), "must be a mapping", None),
    "a number as path": (with_value(5, RECORD, "policy", "path"), "cannot be read: 'int' object", None),
    "text as format": (with_value("new", RECORD, "format"), f"{OF_FIT}format of its", f"{OF_FIT}format of its"),
    "a list as fingerprint": (with_value([], RECORD, "fingerprint"), "fingerprint of its", "fingerprint of its"),
    "no options in it": (with_value({}, RECORD, "fingerprint"), "fingerprint.options", "fingerprint.options"),
    "no inputs in it": (without(RECORD, "fingerprint", "inputs"), "fingerprint.inputs", "fingerprint.inputs"),
    "no weights": (without("state_dict"), f"{OF_FIT}it has no weights", "cannot be restored: KeyError"),
    "a list as weights": (with_value([], "state_dict"), "it has no weights", f"{OF_FIT}state_dict is a list"),
    "empty weights": (with_value({}, "state_dict"), f"{FITS}: missing", "cannot be restored: Error"),
    "a weight less": (changed_weight(lambda weights, name: weights.pop(name)), f"{FITS}: missing", "Missing key"),
    "a weight more": (
        changed_weight(lambda weights, name: weights.update({f"{name}x": weights[name]})),
        "not in the model ['",
        "Unexpected key",
    ),
    "a weight of another shape": (
        changed_weight(lambda weights, name: weights.update({name: torch.ones(3)})),
        "size mismatch",
        "size mismatch",
    ),
    "a weight of text": (changed_weight(lambda weights, name: weights.update({name: "x"})), FITS, "cannot be restored"),
    "text as step": (with_value("x", "global_step"), None, f"{OF_FIT}global_step is a str"),
    "a negative step": (with_value(-5, "global_step"), None, f"{OF_FIT}global_step is -5"),
}
OF_RESUME = {
    "no optimizer": (with_value([], "optimizer_states"), "optimizer_states has 0 entries instead of 1"),
    "a list less of optimizers": (without("optimizer_states"), "cannot be restored: KeyError"),
    "an optimizer of text": (with_value(["x"], "optimizer_states"), "cannot be restored: AttributeError"),
    "an optimizer without groups": (without("optimizer_states", 0, "param_groups"), "KeyError: 'param_groups'"),
    "an optimizer without state": (with_value({}, "optimizer_states", 0, "state"), "optimizer_states has no moments"),
    "an optimizer with other groups": (
        with_value([{"params": [0]}], "optimizer_states", 0, "param_groups"),
        "a different number of parameter groups",
    ),
    "two optimizers": (
        checkpoint(lambda c: c["optimizer_states"].append(c["optimizer_states"][0])),
        "optimizer_states has 2 entries instead of 1",
    ),
    "no scheduler": (with_value([], "lr_schedulers"), "lr_schedulers has 0 entries instead of 1"),
    "weights only": (without("lr_schedulers"), "holds weights only (checkpoint.save_weights_only)"),
    "a scheduler of text": (with_value(["x"], "lr_schedulers"), "cannot be restored: AttributeError"),
    "an empty scheduler": (with_value([{}], "lr_schedulers"), "KeyError: 'lr_lambdas'"),
    "no loops": (without("loops"), f"{OF_FIT}loops is missing"),
    "empty loops": (with_value({}, "loops"), f"{OF_FIT}loops.fit_loop is missing"),
    "an empty fit loop": (with_value({}, "loops", "fit_loop"), "KeyError: 'epoch_loop.batch_progress'"),
    "a fit loop of text": (with_value("x", "loops", "fit_loop"), f"{OF_FIT}loops.fit_loop is missing"),
    "a position of text": (with_value("x", *POSITION), "cannot be restored: TypeError"),
    "a position without its numbers": (with_value({}, *POSITION), "cannot be restored: KeyError: 'total'"),
    "a negative position": (with_value(-3, *POSITION, "current", "completed"), "completed micro-batches is -3"),
    "text as epoch": (with_value("x", "epoch"), f"{OF_FIT}epoch is a str"),
    "a negative epoch": (with_value(-1, "epoch"), f"{OF_FIT}epoch is -1"),
    "callbacks of a list": (with_value([], "callbacks"), f"{OF_FIT}callbacks is a list"),
    "a callback of text": (
        checkpoint(lambda c: c["callbacks"].update(dict.fromkeys(c["callbacks"], "x"))),
        "cannot be restored: TypeError",
    ),
    "a plan of text": (with_value("x", MODULE, "plan"), "cannot be restored: TypeError"),
    "an empty plan": (with_value({}, MODULE, "plan"), "cannot be restored: KeyError: 'accumulate_grad_batches'"),
    "the data's part of text": (with_value("x", MODULE), "cannot be restored: AttributeError"),
    "a version of a number": (with_value(5, "pytorch-lightning_version"), "pytorch-lightning_version is a int"),
    "a version of nonsense": (with_value("new", "pytorch-lightning_version"), "pytorch-lightning_version is"),
}


def cut_file(folder, model):
    whole = (run_of(model) / "checkpoints/step1.ckpt").read_bytes()
    (folder / "x.ckpt").write_bytes(whole[:-2000])
    return folder / "x.ckpt"


def good(folder, model):
    return run_of(model) / "checkpoints/step1.ckpt"


CASES = [
    *(exported(name, path, "checkpoint", says) for name, (path, says, _) in ODD.items() if says),
    exported("a later format", with_value(99, RECORD, "format"), "ckpt_path", "reads formats up to 1"),
    exported("over a file", good, "output", "exists and is not empty", output=file("x")),
    exported("over files", good, "output", "exists and is not empty", output=folder_of(a="b")),
    exported("to a link", good, "output", "is a symbolic link", output=link("data", "out")),
    exported("below a file", good, "output", "could not be written", output=lambda f, m: file("x")(f, m) / "y"),
    exported("from a base that is missing", good, "./nowhere", "neither a directory nor a model", base="./nowhere"),
    exported("from a base that is a file", good, "base", "neither a directory nor a model", base=text("x", "base")),
    exported("with an empty name", good, "output", "could not be written", output=""),
]
OTHER = "the checkpoint is of a run with other options or inputs"
SLOW = [
    *(resumed(name, path, "ckpt_path", says) for name, (path, _, says) in ODD.items() if says),
    *(resumed(name, path, "ckpt_path", says) for name, (path, says) in OF_RESUME.items()),
    *(validated(name, path, "ckpt_path", says) for name, (path, _, says) in ODD.items() if says),
    resumed("a later format", with_value(99, RECORD, "format"), "ckpt_path", "reads formats up to 1"),
    resumed("a later epoch", with_value(5, "epoch"), "trainer.max_epochs", "saved after 5 complete epochs"),
    resumed("fewer steps", good, "trainer.max_steps: 2 -> 1", OTHER, **{T + "max_steps": 1}),
    resumed("other data", good, "data.train.token_ids", OTHER, **{TRAIN: rows(prompt="a b")}),
    resumed("another rate", good, "model.optimizer.lr: 5e-07 -> 1.0", OTHER, **{OPT + "lr": 1}),
    resumed("LoRA from a full model", good, "model.policy.lora.r: null -> 2", OTHER, **{P + "lora.r": 2}),
]
