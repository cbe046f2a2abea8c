"""The README.md of an exported model: base, data, options and metrics, read from the files of the run."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adadpo_lightning import log
from adadpo_lightning._version import __version__
from adadpo_lightning.checkpoints.export import made_of
from adadpo_lightning.checkpoints.history import CONFIG, read_config
from adadpo_lightning.errors import UserError, one_line
from adadpo_lightning.hub import is_hub_id
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.logs import last_metrics, val_stages_of

CARD = "README.md"
SHOWN = (
    names.LOSS,
    names.REWARDS_ACCURACIES,
    names.REWARDS_MARGINS,
    names.BALANCE_RATIO,
    names.DISPLACEMENT_CHOSEN,
    names.DISPLACEMENT_REJECTED,
    names.KL_CHOSEN,
)


def _shown(metrics: dict[str, float]) -> list[str]:
    """The validation metrics of a card, set after set."""
    stages = val_stages_of(metrics)
    return [name for stage in stages for shown in SHOWN if (name := f"{stage}/{shown}") in metrics]


def write_card(folder: Path, run_dir: Path | None) -> Path:
    """Write the model card of an export.

    Args:
        folder: The exported Hugging Face directory.
        run_dir: Output directory of the run, with its ``config.yaml`` and ``csv``; None, or one that has neither, gives
            a card that says so.

    Returns:
        The card.
    """
    path = folder / CARD
    # The weights are written: what cannot be read of the run is not a reason to lose them.
    config: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    if run_dir is not None and (run_dir / CONFIG).exists():
        config = read_config(run_dir / CONFIG) or {}
    try:
        metrics = {} if run_dir is None else last_metrics(run_dir)
    except UserError as error:
        log.warn(f"{path}: the card has no metrics, because {error}")
    try:
        text = card(config, metrics, recorded_hub_ids(folder))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        log.warn(f"{path}: the card does not describe the run, whose {CONFIG} is odd: {one_line(error)}")
        text = card({}, metrics)
    path.write_text(text, encoding="utf-8")
    return path


def recorded_hub_ids(folder: Path) -> list[str] | None:
    """The names of hub repositories that the run used, as the export says; None if it does not."""
    found = made_of(folder).get("hub")
    return found if isinstance(found, list) else None


def card(config: dict[str, Any], metrics: dict[str, float], hub: Sequence[str] | None = None) -> str:
    """The card's text.

    Args:
        config: The run's config as ``config.yaml`` holds it; may be empty.
        metrics: Last values of logged metrics by name.
        hub: Which of the config's names are hub ids; None takes those that look like one and are no path here.

    Returns:
        Markdown with the YAML header of the Hugging Face hub.
    """
    model, data = config.get("model", {}), config.get("data", {})
    policy = model.get("policy") or {}
    base, file = policy.get("path"), policy.get("gguf_file")
    trained = _sources(data.get("train"))
    if hub is None:
        hub = [name for name in (base, *trained) if name and is_hub_id(name)]
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["preference-optimization", "adadpo-lightning"]}
    if base in hub:
        header["base_model"] = base
    if hubs := [name for name in trained if name in hub]:
        header["datasets"] = hubs
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {public_name(base, hub) if base else 'Model'}, trained with adadpo_lightning",
        "",
        f"- Base model: {public_name(base, hub) if base else 'not recorded'}" + (f", file `{file}`" if file else ""),
        f"- Training data: {', '.join(public_name(name, hub) for name in trained) or 'not recorded'}",
        f"- Loss: {_loss(model.get('loss'))}",
        "- Licence: not stated by the run; base model and data have their own.",
        "",
        "## Hyper-parameters",
        "",
        *_hyper_parameters(config),
        "",
        "## Metrics of the last validation",
        "",
        *([f"- `{name}`: {metrics[name]:.4g}" for name in _shown(metrics)] or ["None was logged."]),
        "",
        "## Versions",
        "",
        *(f"- {name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines) + "\n"


def public_name(name: str, hub: Sequence[str]) -> str:
    """A hub id as it is; of a local path only the last part, because the rest is private."""
    return f"`{name if name in hub else Path(name).name}`"


def _sources(train: Any) -> list[str]:
    items = train if isinstance(train, list) else [train]
    return [item if isinstance(item, str) else item["path"] for item in items if item]


def _loss(spec: dict[str, Any] | None) -> str:
    from adadpo_lightning.losses import available_losses, build_loss, loss_class

    if not spec:
        return "not recorded"
    name = str(spec["class_path"]).rpartition(".")[2]
    options = ", ".join(f"{key}={value}" for key, value in (spec.get("init_args") or {}).items())
    known = next((key for key in available_losses() if loss_class(key).__name__ == name), None)
    if known is None:
        return f"{name} ({options})"
    loss = build_loss(known)
    return f"{name} ({options}); `{loss.formula}`; {loss.source}"


def _hyper_parameters(config: dict[str, Any]) -> list[str]:
    wanted = {
        "model": ("reference", "optimizer", "scheduler"),
        "data": ("global_batch_size", "max_length", "max_prompt_length", "truncation", "seed"),
        "trainer": ("max_epochs", "max_steps", "precision", "gradient_clip_val"),
    }
    lines = [
        f"- {section}.{name}: {config[section][name]}"
        for section, names in wanted.items()
        for name in names
        if config.get(section, {}).get(name) is not None
    ]
    lora = ((config.get("model") or {}).get("policy") or {}).get("lora")
    return [*lines, *([f"- model.policy.lora: rank {lora['r']}"] if lora else [])] or ["Not recorded."]


def versions() -> dict[str, str]:
    """Versions of what made the model."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "transformers", "lightning")}
    return {"adadpo_lightning": __version__, **packages, "Python": platform.python_version()}
