"""Fail if an installed package has a known vulnerability; say so and pass where the service cannot be reached."""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Run pip-audit over this environment."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", "--skip-editable"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603  # fixed
        report = json.loads(result.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        print("audit: skipped, the vulnerability service cannot be reached")
        return 0
    found = [
        (package["name"], package["version"], v["id"])
        for package in report["dependencies"]
        for v in package.get("vulns", [])
    ]
    for name, version, identifier in found:
        print(f"audit: {name} {version} has {identifier}")
    print(f"audit: {len(found)} known vulnerabilities in {len(report['dependencies'])} packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
