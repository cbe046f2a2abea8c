"""Public recipes: what each loses is known, and each converted config parses and takes a step on a small model."""

import pytest
import yaml

from scripts.recipes import converted, loss_of, recipes
from tests.support.runs import run
from tests.support.tiny import make_rows, write_rows

RECIPES = {recipe["name"]: recipe for recipe in recipes()}
# What changes the training, recipe by recipe; what a hub or a log would get is not in this table.
LOST = {
    "Zephyr 7B, QLoRA": {"optim"},
    "SmolLM3 3B, APO": {"lr_scheduler_type", "lr_scheduler_kwargs"},
    "Zephyr 141B, ORPO": {"optim", "lr_scheduler_type"},
    "Qwen3 4B, LoRA": {"template", "dataset dpo_en_demo", "ddp_timeout"},
}
LOSSES = {
    "Zephyr 7B": "DPO(beta 0.01, label_smoothing 0.0)",
    "SmolLM3 3B, APO": "APOZero(beta 0.05)",
    "Zephyr 141B, ORPO": "ORPO(lam 0.05)",
    "Llama 3 8B Instruct, SimPO": "SimPO(beta 2.5, gamma_beta_ratio 0.55, label_smoothing 0.0)",
    "Mixed preference optimization, MPO": "0.8 DPO(beta 0.1, label_smoothing 0.0) + 0.2 BCO(beta 0.1) + 1 SFT",
    "Regularised by likelihood, RPO": "1 DPO(beta 0.01, label_smoothing 0.0) + 0.005 SFT",
    "Quick start": "DPO(beta 0.1, label_smoothing 0.0)",
}


def test_there_are_recipes_of_four_sources():
    assert len(RECIPES) >= 10
    assert {recipe["source"].partition(",")[0] for recipe in RECIPES.values()} == {
        "huggingface/alignment-handbook",
        "princeton-nlp/SimPO",
        "huggingface/trl",
        "hiyouga/LLaMA-Factory",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_loses(name):
    _, made = converted(RECIPES[name])
    assert {key for key in made.dropped if not key.startswith(("hub_", "push_"))} == LOST.get(name, set())
    assert loss_of(made) == LOSSES.get(name, loss_of(made))
    given = RECIPES[name].get("given", {})
    for key, place in (("learning_rate", ("model", "optimizer", "lr")), ("seed", ("data", "seed"))):
        if key in given:
            found = made.config
            for part in place:
                found = found.get("init_args", found)[part]
            assert found == given[key]
    if given:
        micro, steps = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
        assert made.config["data"]["global_batch_size"] == RECIPES[name]["ranks"] * micro * steps


# Replaces what a small machine cannot have: the weights, the data, the devices and the size of a step.
SMALL = {
    "trainer": {
        **{"max_steps": 1, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "precision": "32-true"},
        **{"limit_val_batches": 0, "enable_progress_bar": False, "enable_model_summary": False},
    },
    "data": {"global_batch_size": 4, "micro_batch_size": 2, "num_workers": 0, "num_proc": None, "val": None},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "Quick start" else pytest.mark.slow) for n in RECIPES]
)
def test_a_converted_recipe_takes_a_step(name, tmp_path, model_dir, capsys):
    text, _ = converted(RECIPES[name])
    (tmp_path / "ours.yaml").write_text(text)
    assert run(["fit", f"--config={tmp_path / 'ours.yaml'}", "--model.policy.path=x", "--print_config"]) == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    config = yaml.safe_load(text)
    assert whole["model"]["loss"]["class_path"] == config["model"]["loss"]["class_path"]
    given = config["model"]["optimizer"]
    assert whole["model"]["optimizer"]["init_args"]["lr"] == given.get("init_args", given)["lr"]
    policy = {"path": str(model_dir), "revision": None, "dtype": "float32", "attn_implementation": None}
    if lora := config["model"]["policy"].get("lora"):
        policy["lora"] = lora | {"r": 2, "quantize": None}
    config["model"]["policy"] = policy
    config["trainer"] |= SMALL["trainer"]
    config["data"] |= SMALL["data"] | {"train": str(write_rows(tmp_path / "pairs.jsonl", make_rows(8))), "val_size": 0}
    config["data"] |= {"max_length": 64, "max_prompt_length": None}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config | {"output_dir": str(tmp_path / "out")}))
    assert run(["fit", f"--config={tmp_path / 'small.yaml'}"]) == 0
    assert (tmp_path / "out" / "checkpoints").is_dir()
