"""The shapes that preference data come in, one file each."""

from importlib import import_module

from adadpo_lightning.data.formats.registry import (
    FORMATS,
    RowFormat,
    check_format,
    detect_format,
    read_pair,
    register_format,
    rename_columns,
)

__all__ = ["FORMATS", "RowFormat", "check_format", "detect_format", "read_pair", "register_format", "rename_columns"]

# Where rows match several formats, the first of them is detected.
for _name in ("text", "messages", "conversations", "hh", "answer", "dialogue", "ranked", "ultrafeedback"):
    import_module(f"{__name__}.{_name}")
