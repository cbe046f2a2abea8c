"""Python scripts: literals are taken, and everything else is named and never guessed."""

import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.convert.from_trl import from_trl_file
from adadpo_lightning.convert.trl_script import read_script
from adadpo_lightning.errors import UserError

SCRIPT = """
import torch
from trl import DPOConfig as Config, DPOTrainer
raise SystemExit("a script is read, never run")
args = Config(
    "out", beta=0.05, learning_rate=5e-7, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.1], max_length=None,
    gradient_accumulation_steps=2, bf16=True, warmup_steps=-0 + 0 if False else 3,
    model_init_kwargs={"dtype": torch.bfloat16},
)
trainer = DPOTrainer(
    model="org/model", args=args, train_dataset=load_dataset("org/pairs", split="train_prefs"),
    peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
)
"""


def test_literals_are_read():
    script = read_script(SCRIPT, "train.py")
    assert script.config == "DPOConfig"
    assert script.given == {
        "output_dir": "out",
        "beta": 0.05,
        "learning_rate": 5e-7,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 0.1],
        "max_length": None,
        "gradient_accumulation_steps": 2,
        "bf16": True,
        "model_init_kwargs": {"dtype": "bfloat16"},
        "model_name_or_path": "org/model",
        "dataset_name": "org/pairs",
        "dataset_train_split": "train_prefs",
        "use_peft": True,
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj"],
    }
    assert list(script.computed) == ["warmup_steps"]


def test_what_the_result_depends_on_must_be_given(tmp_path, capsys):
    file = tmp_path / "train.py"
    call = "DPOConfig(beta=args.beta, output_dir=f'{x}', lora=1, run_name=name, max_length=2 * n)"
    file.write_text(f"from trl import DPOConfig\n{call}\n")
    assert main(["from-trl", str(file)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "beta = args.beta (line 2) max_length = 2 * n (line 2)" in message
    assert "add --set beta=VALUE max_length=VALUE" in message
    assert "output_dir" not in message
    assert main(["from-trl", str(file), "--set", "beta=0.3", "max_length=512"]) == 0
    out = capsys.readouterr().out
    assert "beta: 0.3" in out
    assert "max_length: 512" in out
    assert "# left out: output_dir (f'{x}' (line 2): only running the script would show it)" in out
    assert "# left out: run_name (name (line 2)" in out
    assert "output_dir:" not in out.replace("# left out: output_dir", "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1", "expected one call of DPOConfig, CPOConfig, ORPOConfig, SimPOConfig, found none"),
        ("DPOConfig()\nCPOConfig()", "found DPOConfig in line 1, CPOConfig in line 2"),
        ("DPOConfig(", "not valid Python"),
        ("DPOTrainer(args=parse())", "found none"),
    ],
)
def test_no_single_config(text, problem):
    with pytest.raises(UserError, match=problem):
        read_script(text, "train.py")


def test_a_trainer_without_arguments_has_the_defaults(tmp_path):
    (tmp_path / "quick.py").write_text(
        'DPOTrainer("org/model", train_dataset=load_dataset("org/pairs", split="train"))'
    )
    config = from_trl_file(str(tmp_path / "quick.py"))[1].config
    assert config["model"]["policy"]["path"] == "org/model"
    assert config["model"]["loss"]["init_args"] == {"beta": 0.1, "label_smoothing": 0.0}
    assert config["data"]["train"] == {"path": "org/pairs", "split": "train"}


def test_hidden_keywords_and_an_unknown_adapter_are_named(tmp_path):
    script = read_script("DPOConfig(beta=1, **common)\nDPOTrainer(peft_config=peft)", "train.py")
    assert script.notes == ["**common (line 1) was not read: add its keys with --set"]
    assert script.computed == {"use_peft": "peft (line 2)"}
    (tmp_path / "a.py").write_text("DPOConfig(beta=1)\nDPOTrainer(peft_config=peft)")
    with pytest.raises(UserError, match="use_peft = peft"):
        from_trl_file(str(tmp_path / "a.py"))
    assert "lora" not in from_trl_file(str(tmp_path / "a.py"), settings=["use_peft=false"])[1].config["model"]["policy"]
    with pytest.raises(UserError, match="--set: expected KEY=VALUE, got 'beta'"):
        from_trl_file(str(tmp_path / "a.py"), settings=["beta"])


def test_the_class_says_which_trainer(tmp_path):
    (tmp_path / "a.py").write_text("trl.experimental.orpo.ORPOConfig(beta=0.3)")
    found = from_trl_file(str(tmp_path / "a.py"))[1]
    assert found.config["model"]["loss"] == {"class_path": "adadpo_lightning.losses.ORPO", "init_args": {"lam": 0.3}}
    assert found.differs[0] == "read as TRL's ORPOConfig"
