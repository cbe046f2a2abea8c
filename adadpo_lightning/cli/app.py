"""The entry of the command line: find the command, parse its options, run it, and print errors of the user."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from adadpo_lightning._version import __version__
from adadpo_lightning.cli.registry import commands, find_command
from adadpo_lightning.errors import UserError

PROGRAM = "adadpo-lightning"
_FULL = ("there is no room to write", "free some disk space, or choose another directory")
_REFUSED = ("the system refuses to read or write", "change its permissions, or choose another directory")
# What the disk may refuse anywhere: an error of the machine, which its user can mend, not of the program.
OF_THE_DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _REFUSED),
    errno.ENOTDIR: ("it lies below a file", "choose another directory"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
}


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Arguments without the name of the program. ``--debug`` anywhere shows the traceback of a user error.

    Returns:
        The exit status: 0, or 2 for an error that the user can fix, among them a full or read-only disk.
    """
    args = [arg for arg in argv if arg != "--debug"]
    try:
        if not args or args[0] in ("-h", "--help"):
            print(usage())
        elif args[0] == "--version":
            print(f"{PROGRAM} {__version__}")
        else:
            _run(args[0], args[1:])
    except UserError as error:
        if len(args) != len(argv):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if len(args) != len(argv) or error.errno not in OF_THE_DISK:
            raise
        problem, fix = OF_THE_DISK[error.errno]
        print(f"error: {error.filename or 'disk'}: {problem} ({error.strerror}); {fix}", file=sys.stderr)
        return 2
    return 0


def usage() -> str:
    """The help of the program: every command in one line."""
    lines = [f"usage: {PROGRAM} COMMAND [--config FILE ...] [--OPTION VALUE ...]", "", "commands:"]
    lines += [f"  {entry.name:<14}{entry.help}" for entry in commands().values()]
    return "\n".join(
        [*lines, "", "COMMAND --help lists its options; --version; --debug shows the traceback of an error."]
    )


def _run(name: str, args: list[str]) -> None:
    """Parse and run. Help and ``--print_config`` end after they have been printed."""
    entry = find_command(name)
    # jsonargparse takes 0.2 s to import, and the help above does without it.
    from adadpo_lightning.cli.messages import readable_errors
    from adadpo_lightning.cli.parser import build_parser, parse

    command = entry.load()
    if not args and (run := getattr(command, "run_without_arguments", None)) is not None:
        run()
        return
    with readable_errors(name):
        parser = build_parser(f"{PROGRAM} {name}", command)
        config = parse(parser, args)
        if config is not None:
            command.run(config, parser)
