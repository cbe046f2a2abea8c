"""A damaged checkpoint is recognised and the one before it used; a changed config is said."""

import random
import resource
import shutil
import sys
from types import ModuleType

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adadpo_lightning.checkpoints.integrity import MANIFEST, WholeFileIO, damage, shard_digests, step_of, write_manifest
from adadpo_lightning.checkpoints.resume import latest_valid, resolve_checkpoint
from adadpo_lightning.cli import trainer as command_line
from adadpo_lightning.errors import UserError
from tests.support.runs import PAIRS, arguments, assert_same, curves, run
from tests.support.tiny import make_rows, write_rows


def state(step=3, seed=0):
    values = torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))
    return {"global_step": step, "state_dict": {"a": values, "b": values[:5].clone()}, "loops": {"fit": [1, 2, "x"]}}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeFileIO().save_checkpoint(state(), path)
    return path


def test_a_whole_file_is_whole_and_leaves_nothing_beside_it(checkpoint):
    assert damage(checkpoint) is None
    assert step_of(checkpoint) == 3
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_damaged(checkpoint, share):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    assert "cut short" in damage(checkpoint)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def test_a_flipped_bit_is_damage_or_changes_nothing(checkpoint):
    content = checkpoint.read_bytes()
    draw = random.Random(0)
    found = 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(flipped)
        if damage(checkpoint) is not None:
            found += 1
        else:  # padding between records, or a date
            assert same(torch.load(checkpoint, weights_only=True), state())
    assert found > 250


def shards(folder, step):
    folder.mkdir(parents=True)
    for rank in range(2):
        (folder / f"__{rank}_0.distcp").write_bytes(bytes([rank] * 1000))
    (folder / ".metadata").write_bytes(b"m" * 10)
    torch.save({"global_step": step}, folder / "meta.pt")
    write_manifest(folder, shard_digests(folder, 0) | shard_digests(folder, 1))
    return folder


def test_damage_of_a_directory_of_shards(tmp_path):
    folder = shards(tmp_path / "last.ckpt", 5)
    assert damage(folder) is None
    assert step_of(folder) == 5
    content = (folder / "__1_0.distcp").read_bytes()
    (folder / "__1_0.distcp").write_bytes(content[:-1] + b"x")
    assert damage(folder) == "the checksum of __1_0.distcp does not match"
    (folder / "__1_0.distcp").unlink()
    assert damage(folder) == "__1_0.distcp is missing"
    (folder / MANIFEST).write_text("{")
    assert "cannot be read" in damage(folder)
    (folder / MANIFEST).unlink()
    assert "not finished" in damage(folder)


def test_the_latest_valid_checkpoint_is_that_of_the_latest_step(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        WholeFileIO().save_checkpoint(state(step), folder / f"step{step}.ckpt")
    (folder / "step2.ckpt").touch()  # newest by the clock, not by its step
    (folder / ".last.ckpt.partial").write_bytes(b"half")
    assert latest_valid(folder) == (folder / "step6.ckpt", {})
    (folder / "step6.ckpt").write_bytes((folder / "step6.ckpt").read_bytes()[:-100])
    found, damaged = latest_valid(folder)
    assert found == folder / "step4.ckpt"
    assert list(damaged) == [folder / "step6.ckpt"]


def test_a_directory_that_a_kill_left_between_two_names_is_found(tmp_path):
    folder = tmp_path / "checkpoints"
    shards(folder / ".last.ckpt.old", 2)
    shards(folder / ".last.ckpt.partial", 4)
    assert latest_valid(folder)[0] == folder / ".last.ckpt.partial"
    (folder / ".last.ckpt.partial" / MANIFEST).unlink()
    assert latest_valid(folder)[0] == folder / ".last.ckpt.old"


def test_what_ckpt_path_and_auto_resume_mean(tmp_path, checkpoint):
    out, empty = str(tmp_path), str(tmp_path / "empty")
    assert resolve_checkpoint(None, out) is None
    assert resolve_checkpoint("last", out) == str(checkpoint)
    assert resolve_checkpoint(None, out, auto_resume=True) == str(checkpoint)
    assert resolve_checkpoint(None, empty, auto_resume=True) is None
    assert resolve_checkpoint(str(checkpoint), empty) == str(checkpoint)
    with pytest.raises(UserError, match=r"ckpt_path: no checkpoint found in .*empty/checkpoints"):
        resolve_checkpoint("last", empty)
    with pytest.raises(UserError, match=r"ckpt_path: no checkpoint nowhere.ckpt found"):
        resolve_checkpoint("nowhere.ckpt", empty)
    other = checkpoint.with_name("step3.ckpt")
    shutil.copy(checkpoint, other)
    checkpoint.write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match=r"last.ckpt is damaged: it is cut short .*; .*step3.ckpt is valid"):
        resolve_checkpoint(str(checkpoint), out)
    other.unlink()
    # Never a fresh start over what may be repaired.
    with pytest.raises(UserError, match=r"no checkpoint in .* is valid"):
        resolve_checkpoint(None, out, auto_resume=True)


def test_a_full_disk_leaves_the_checkpoint_before(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()
    save = torch.save

    class Full:
        """A file on a disk with room for a thousand bytes."""

        def __init__(self, file):
            self.file, self.room = file, 1000

        def write(self, data):
            self.room -= len(data)
            if self.room < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(torch, "save", lambda what, file: save(what, Full(file)))
    with pytest.raises(UserError, match=r"last.ckpt: the checkpoint could not be written: .*No space left on device"):
        WholeFileIO().save_checkpoint(state(4), checkpoint)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]


class SmallFiles(Callback):
    """From one step on the system lets this process write no file that is as large as a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, self.before[1]))

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        return self

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_run_that_can_write_no_more_stops_and_goes_on_when_it_can(tmp_path, model_dir, monkeypatch, capsys):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(PAIRS))
    saving = "--checkpoint.every_n_train_steps=1"
    assert run(arguments(model_dir, pairs, tmp_path / "whole", saving)) == 0
    build = command_line.build_trainer
    args = arguments(model_dir, pairs, tmp_path / "out", saving, "--auto_resume=true")
    with SmallFiles(3) as full, monkeypatch.context() as patch:
        patch.setattr(command_line, "build_trainer", lambda m, o, cs: build(m, o, [full, *cs]))
        assert run(args) == 2
    assert "the checkpoint could not be written: [Errno 27] File too large" in capsys.readouterr().err
    found, damaged = latest_valid(tmp_path / "out/checkpoints")
    assert step_of(found) == 3
    assert not damaged
    assert not list((tmp_path / "out/checkpoints").glob(".*"))
    assert run(args) == 0
    assert_same(tmp_path / "out", tmp_path / "whole")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_dir):
    """A run of 6 steps with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("run")
    pairs = write_rows(folder / "pairs.jsonl", make_rows(PAIRS))
    saving = ["--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1"]
    args = arguments(model_dir, pairs, folder / "out", *saving)
    assert run(args) == 0
    return folder / "out", args


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, tmp_path, capsys, how):
    out, args = finished
    args = [arg.replace(str(out), str(tmp_path)) for arg in args]
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    saved = tmp_path / "checkpoints"
    weight = max(torch.load(saved / "step6.ckpt")["state_dict"].values(), key=torch.numel).numpy().tobytes()
    for name in ("last", "step6"):
        content = bytearray((saved / f"{name}.ckpt").read_bytes())
        if how == "truncated":
            del content[-len(content) // 3 :]
        else:
            content[content.index(weight) + len(weight) // 2] ^= 16
        (saved / f"{name}.ckpt").write_bytes(content)
    assert run([*args, "--auto_resume=true"]) == 0
    said = capsys.readouterr().err
    assert "last.ckpt is damaged: " in said
    assert "step6.ckpt is damaged: " in said
    assert f"Resuming from {saved}/step5.ckpt, step 5." in said
    theirs = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ours = torch.load(saved / "last.ckpt", weights_only=True)["state_dict"]
    assert same(ours, theirs)


def test_a_changed_config_is_said_and_can_be_allowed(finished, capsys):
    out, args = finished
    before = curves(out)
    changed = [*args, "--ckpt_path=last", "--model.loss.beta=0.3", "--trainer.max_epochs=3", "--data.max_length=39"]
    assert run(changed) == 2
    said = capsys.readouterr().err
    for line in ("model.loss.init_args.beta: 0.1 -> 0.3", "trainer.max_epochs: 2 -> 3", "data.max_length: 40 -> 39"):
        assert line in said
    assert "--allow_changed_config true" in said
    assert curves(out) == before
    changed = [*args, "--ckpt_path=last", "--trainer.max_epochs=3", "--allow_changed_config=true"]
    assert run(changed) == 0
    assert max(step for _, step in curves(out)) > max(step for _, step in before)


def test_types_of_torchao_are_named(tmp_path, monkeypatch):
    made = ModuleType("torchao.optim.other")
    made.Moments = type("Moments", (), {"__module__": made.__name__})
    for name in ("torchao", "torchao.optim", made.__name__):
        monkeypatch.setitem(sys.modules, name, made)
    torch.save({"state": made.Moments()}, tmp_path / "a.ckpt")
    for name in ("torchao", "torchao.optim", made.__name__):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(UserError, match=r"torchao: .*a\.ckpt has the 8-bit state of its optimizers"):
        damage(tmp_path / "a.ckpt")
