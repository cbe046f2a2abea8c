"""``python -m adadpo_lightning``: the command line."""

from __future__ import annotations

import io
import locale
import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line and exit with its status."""
    know_more_than_ascii()
    from adadpo_lightning.cli import main as run
    from adadpo_lightning.parent import follow_parent

    follow_parent()
    work_in_any_locale()
    sys.exit(run(sys.argv[1:]))


def know_more_than_ascii() -> None:
    """Start again in Python's UTF-8 mode where it reads names of files as ASCII, and so could not tell any others."""
    if sys.getfilesystemencoding() == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # no shell


def work_in_any_locale() -> None:
    """Read files as UTF-8 and escape what the terminal cannot show, where the locale knows no more than ASCII."""
    if locale.getpreferredencoding(do_setlocale=False).lower().replace("-", "") != "utf8":
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
