"""Extensions of the documentation site, named in mkdocs.yml: doctests under "Example:", and no external resources."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object
from mkdocs.exceptions import PluginError

# What a browser loads by itself, unlike a link that a reader follows.
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)


class Examples(Extension):
    """Renames "Example:" to "Examples:", the only heading under which griffe renders doctests as code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)


def on_post_page(output: str, page: Any, **kwargs: Any) -> str:
    """Hook of mkdocs: stop the build if a page would load anything from another host.

    Raises:
        PluginError: Naming the page and the element.
    """
    found = EXTERNAL.search(output)
    if found:
        raise PluginError(f"{page.file.src_path}: loads an external resource: {found.group()}")
    return output
