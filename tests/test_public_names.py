"""Public names: each is importable from its documented place, typed, and importing the package loads nothing heavy."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import adadpo_lightning
from adadpo_lightning import losses
from adadpo_lightning.losses import available_losses, loss_class

ROOMS = ("callbacks", "losses", "metrics", "strategies")


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_public_names_resolve(room):
    module = import_module(f"adadpo_lightning.{room}".rstrip("."))
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_every_loss_and_twin_is_in_its_room_and_the_papers_own_at_the_root():
    for key in available_losses():
        kind = loss_class(key)
        if kind.__module__.startswith("adadpo_lightning."):
            assert getattr(losses, kind.__name__) is kind
            assert kind.__name__ in losses.__all__
        if key.removeprefix("ada") in ("dpo", "rdpo", "ipo", "simpo", "cpo", "orpo", "sft"):
            assert getattr(adadpo_lightning, kind.__name__) is kind
            assert kind.__name__ in adadpo_lightning.__all__


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_need_no_import_of_their_own(room):
    # Python asks the package itself only for what is not imported yet.
    assert adadpo_lightning.__getattr__(room) is import_module(f"adadpo_lightning.{room}")


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = adadpo_lightning.nosuch


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, adadpo_lightning; print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


TYPED = """
from adadpo_lightning import AdaDPO, PolicyConfig, PreferenceDataModule, PreferenceLitModule

reveal_type(AdaDPO(beta=0.1).beta)
module = PreferenceLitModule(PolicyConfig("model"), AdaDPO(beta=0.1))
reveal_type(PreferenceLitModule.load_from_checkpoint("last.ckpt"))
reveal_type(module.generate(["a"]))
data = PreferenceDataModule(train="pairs.jsonl", val_size=0.02, global_batch_size=32)
AdaDPO(betta=0.1)
"""


@pytest.mark.slow
def test_the_root_is_typed_for_users(tmp_path):
    assert (Path(adadpo_lightning.__file__).parent / "py.typed").is_file()
    (tmp_path / "user.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", "user.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert 'Revealed type is "float"' in said or 'Revealed type is "builtins.float"' in said, said
    assert "PreferenceLitModule" in said
    assert 'Unexpected keyword argument "betta"' in said
    assert said.count("error:") == 1, said
