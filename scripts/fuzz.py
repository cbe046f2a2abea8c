"""Fuzz the parsers that strangers feed, guided by coverage: ``python scripts/fuzz.py TARGET --minutes 10``.

With atheris (extra ``fuzz``) inputs follow the coverage of this package; without it, or with ``--engine hypothesis``,
hypothesis draws them. Every distinct failure is printed once, with the input; the status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
HANG_SECONDS = 20
MEMORY = 6 << 30


class Hang(BaseException):
    """An input took too long."""


class Fuzzer:
    """Runs a target over many inputs and keeps the first of each kind of failure.

    Args:
        name: The target.
        minutes: How long.
    """

    def __init__(self, name: str, minutes: float) -> None:
        from tests.support.fuzz_targets import TARGETS, holds

        self.name, self.target, self.holds = name, TARGETS[name], holds
        self.end = time.monotonic() + 60 * minutes
        self.count = 0
        self.failures: dict[str, str] = {}
        signal.signal(signal.SIGVTALRM, self._hang)

    def _hang(self, number: int, frame: FrameType | None) -> None:
        raise Hang

    def check(self, value: Any) -> None:
        """Try one input."""
        self.count += 1
        # A timer of its own kind: the renderer of templates uses the other one.
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS)
        try:
            self.holds(self.target, value)
        except (Exception, Hang) as error:
            self._keep(error, value)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _keep(self, error: BaseException, value: Any) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "adadpo_lightning/" in f.filename and "/tests/" not in f.filename] or frames
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        kind = f"{type(error).__name__} at {where}"
        if kind not in self.failures:
            self.failures[kind] = repr(value)
            text = f"{kind}: {str(error)[:300]}\n  input: {repr(value)[:2000]}"
            print(f"[{self.name}] after {self.count}: {text}", flush=True)

    def report(self) -> int:
        """Say what came out."""
        print(f"[{self.name}] {self.count:,} inputs, {len(self.failures)} kinds of failure", flush=True)
        return 1 if self.failures else 0


def by_hypothesis(fuzzer: Fuzzer) -> None:
    """Draw inputs until the time is over."""
    from hypothesis import HealthCheck, Phase, given, settings

    while time.monotonic() < fuzzer.end:

        @settings(
            max_examples=200,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(fuzzer.target.inputs)
        def run(value: Any) -> None:
            if time.monotonic() < fuzzer.end:
                fuzzer.check(value)

        run()


def by_coverage(fuzzer: Fuzzer, atheris: Any) -> None:
    """Let atheris choose the bytes that hypothesis makes inputs of; does not return."""
    from hypothesis import HealthCheck, given, settings

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(fuzzer.target.inputs)
    def run(value: Any) -> None:
        fuzzer.check(value)

    def one(data: bytes) -> None:
        if time.monotonic() > fuzzer.end:
            os._exit(fuzzer.report())  # libFuzzer has no other end that keeps the status
        run.hypothesis.fuzz_one_input(data)

    atheris.Setup([sys.argv[0], "-max_len=4096", "-len_control=0", "-timeout=60", "-verbosity=0"], one)
    atheris.Fuzz()


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--engine", choices=["atheris", "hypothesis"], default="atheris")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    atheris = None
    if options.engine == "atheris":
        try:
            import atheris
        except ImportError:
            print("atheris is not installed (extra fuzz): hypothesis draws the inputs", file=sys.stderr)
    if atheris is None:
        fuzzer = Fuzzer(options.target, options.minutes)
        by_hypothesis(fuzzer)
        return fuzzer.report()
    with atheris.instrument_imports(include=["adadpo_lightning"]):
        fuzzer = Fuzzer(options.target, options.minutes)
    by_coverage(fuzzer, atheris)
    return 1  # not reached


if __name__ == "__main__":
    sys.exit(main())
