"""Write docs/configuration.md and docs/from_trl.md from docstrings, signatures and the table of TRL's keys.

python scripts/make_docs.py
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from docstring_parser import parse

from adadpo_lightning import callbacks, strategies
from adadpo_lightning.cli import own as commands
from adadpo_lightning.convert.trl_keys import key_table
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.losses import available_losses, loss_class
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.study.grid import Arm, EmbeddedTaskConfig, JudgedPrompts, StudyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS: dict[str, tuple[str, Any]] = {
    "model": ("The module", PreferenceLitModule),
    "model.policy": ("The policy", PolicyConfig),
    "model.policy.lora": ("Adapters", LoraOptions),
    "model.optimizer": ("The optimizer", OptimizerConfig),
    "model.scheduler": ("The schedule", SchedulerConfig),
    "data": ("The data", PreferenceDataModule),
    "data.train": ("A source of data, where more than a path is to be said; also data.val, data.test", SourceConfig),
    "trainer.strategy": ("FSDP2 (`class_path: adadpo_lightning.strategies.FSDP2`)", strategies.FSDP2),
}
STUDY: dict[str, tuple[str, Any]] = {
    "": ("A study", StudyConfig),
    "arms.NAME": ("An arm", Arm),
    "embedded": ("Size of the embedded task", EmbeddedTaskConfig),
    "evaluation": ("How policies are judged", JudgedPrompts),
}
HEAD = "<!-- Written by scripts/make_docs.py from the docstrings; change those. -->\n\n"


def configuration() -> str:
    """Every config key with its type, default and meaning."""
    lines = [
        HEAD + "# Every config key",
        "",
        "`python -m adadpo_lightning fit --print_config` shows them with the values of a command line; "
        "`trainer.*`, `checkpoint.*` and loggers beyond what stands here are "
        "[Lightning's](https://lightning.ai/docs/pytorch/stable/common/trainer.html).",
        "",
        "| key | type | default | |",
        "|---|---|---|---|",
        "| `output_dir` | str | runs/default | Directory that the run writes to. |",
        "| `seed_everything` | int | 0 | Seed of everything but the order of pairs, which is `data.seed`. |",
        "| `ckpt_path` | str | null | Checkpoint to go on from: a path, or `last` for the newest whole one. |",
        "| `auto_resume` | bool | false | `last` where there is a checkpoint, a fresh start where there is none. |",
        "| `allow_changed_config` | bool | false | Resume although the config differs in what matters. |",
    ]
    for prefix, (title, described) in SECTIONS.items():
        lines += ["", f"## {prefix}", "", f"{title}.", "", *table(described, f"{prefix}.")]
    lines += ["", "## model.loss", "", "A loss by its key or class, with its options:"]
    for key in available_losses():
        loss = loss_class(key)
        lines += ["", f"### {key} (`{loss.__name__}`)", "", summary(loss), "", *table(loss, "model.loss.")]
    lines += [
        "",
        "## trainer.callbacks",
        "",
        "`class_path: adadpo_lightning.callbacks.NAME`, options under `init_args`:",
    ]
    for name in callbacks.__all__:
        made = getattr(callbacks, name)
        if name.endswith("Error"):
            continue
        own = "__init__" in vars(made)
        lines += ["", f"### {name}", "", summary(made), "", *(table(made, "") if own else [])]
    lines += ["", "# Configs of `study`", ""]
    for prefix, (title, described) in STUDY.items():
        lines += [f"## {title}", "", *table(described, f"{prefix}." if prefix else ""), ""]
    lines += ["# Other commands", ""]
    for name in ("export", "quickstart", "generate", "evaluate", "inspect_data", "from_trl", "plot"):
        command = getattr(commands, name)
        lines += [f"## {name.replace('_', '-')}", "", summary(command), "", *table(command, "--"), ""]
    return "\n".join(lines).rstrip() + "\n"


def summary(described: Any) -> str:
    """The docstring without its arguments."""
    parsed = parse(inspect.getdoc(described) or "")
    return " ".join(filter(None, [parsed.short_description, parsed.long_description])).replace("\n", " ")


def table(described: Any, prefix: str) -> list[str]:
    """One row a parameter."""
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in parse(inspect.getdoc(described) or "").params}
    if is_dataclass(described):
        for base in described.__mro__[1:]:
            inherited = parse(inspect.getdoc(base) or "").params if base is not object else []
            texts = {p.arg_name: " ".join((p.description or "").split()) for p in inherited} | texts
        factories = {f.name: f.default_factory() for f in fields(described) if f.default_factory is not MISSING}
    else:
        factories = {}
    rows = []
    for name, parameter in inspect.signature(described).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        kind = str(parameter.annotation).replace("|", "\\|").replace("typing.", "")
        default = factories.get(name, parameter.default)
        shown = "required" if default is inspect.Parameter.empty else yaml_value(default)
        rows.append(f"| `{prefix}{name}` | {kind} | {shown} | {texts.get(name, '').replace('|', chr(92) + '|')} |")
    return ["| key | type | default | |", "|---|---|---|---|", *rows] if rows else []


def yaml_value(value: Any) -> str:
    """A default as a config would have it."""
    if is_dataclass(value):
        return "its own defaults"
    if isinstance(value, dict):
        return "{}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def from_trl() -> str:
    """How to move from TRL."""
    return (
        HEAD + "# Moving from TRL\n\n"
        "`python -m adadpo_lightning from-trl DPO_CONFIG.yaml --output ours.yaml --ranks 8` writes a config of this "
        "package and says what has no counterpart. TRL's own defaults (1.16) are written out where ours differ. "
        "Losses: "
        "`sigmoid` is `dpo`, `ipo` is `ipo` with `tau` for beta, `sft` is `sft`, several with `loss_weights` are a "
        "`Mixture`; others are an error.\n\n" + key_table() + "\n"
    )


def main() -> None:
    """Write both."""
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    (DOCS / "from_trl.md").write_text(from_trl(), encoding="utf-8")


if __name__ == "__main__":
    main()
