"""Arguments before the parser sees them: names of shipped configs, config files that hold no config, keys of losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from adadpo_lightning.errors import UserError

CONFIG = ("--config", "-c")
LOSS = ("--model.loss",)
MOST_VALUES = 100_000


def prepare(args: Sequence[str]) -> list[str]:
    """Resolve names that the parser does not know.

    ``--config`` takes the name of a shipped config, such as loss/adadpo, from any directory. ``--model.loss`` takes a
    key of the registry, such as adadpo, as well as a class.

    Raises:
        UserError: If a config file cannot be read.
    """
    from adadpo_lightning.shipped import config_path

    resolved = _replace(args, CONFIG, config_path)
    for _, name in _values(resolved, CONFIG):
        _check_config_file(Path(name))
    return _replace(resolved, LOSS, _loss_class_name)


def _values(args: Sequence[str], flags: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Position and value of each option of these names, as ``--name value`` or ``--name=value``."""
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in flags and equals:
            yield i, value
        elif i > 0 and args[i - 1] in flags:
            yield i, arg


def _replace(args: Sequence[str], flags: Sequence[str], change: Callable[[str], str]) -> list[str]:
    changed = list(args)
    for i, value in _values(args, flags):
        changed[i] = args[i][: len(args[i]) - len(value)] + change(value)
    return changed


def _loss_class_name(value: str) -> str:
    from adadpo_lightning.losses import available_losses, loss_class

    return loss_class(value).__name__ if value in available_losses() else value


def _values_below(node: Any, known: dict[int, int]) -> int:
    """The number of values in a YAML node, each as often as it is referred to."""
    if id(node) not in known:
        children = getattr(node, "value", None)
        listed = children if isinstance(children, list) else []
        known[id(node)] = 1 + sum(_values_below(c, known) for each in listed for c in _parts(each))
    return known[id(node)]


def _parts(child: Any) -> tuple[Any, ...]:
    return child if isinstance(child, tuple) else (child,)  # of a mapping, key and value


@cache
def _strict_loader() -> Any:
    """YAML's safe loader, which also stops at a key that is there twice, of which it would silently take the last.

    And at aliases within aliases that stand for more values than a config has: whoever writes them out never ends.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        def get_single_node(self) -> yaml.Node | None:
            node: yaml.Node | None = super().get_single_node()
            if _values_below(node, {}) > MOST_VALUES:
                raise yaml.YAMLError(f"it has more than {MOST_VALUES:,} values, those of aliases included")
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                name = str(key.value)
                if isinstance(key, yaml.ScalarNode) and name in lines:
                    raise yaml.YAMLError(f"the key {name!r} is in line {lines[name]} and again in line {line}")
                lines[name] = line
            return super().construct_mapping(node, deep)

    return Strict


def _check_config_file(path: Path) -> None:
    """Report a file that is not a config by its name; the parser's own message does not have it.

    Raises:
        UserError: If it cannot be read, or is not a mapping.
    """
    import yaml

    if not path.is_file():
        return  # the parser reports it
    try:
        content = _strict_loader()(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"invalid YAML: {' '.join(str(error).split())}", "fix the file") from error
    if not isinstance(content, dict):
        raise UserError(str(path), f"expected keys and values, got {type(content).__name__}", "see configs/base.yaml")
