#!/usr/bin/env bash
# Writes requirements.lock: the exact version of every package that the project and its extras `test`, `bench`,
# `slurm`, `ray`, `optuna` and `mauve` need, as installed in an environment.
#
#   scripts/lock.sh [PYTHON]     PYTHON: that environment's interpreter; default .venv/bin/python
#
# To move to newer versions, install them first and lock what the tests pass with:
#
#   python3 -m venv /tmp/newer && /tmp/newer/bin/pip install --upgrade -e '.[test,bench,slurm,ray,optuna,mauve]'
#   /tmp/newer/bin/python -m pytest && scripts/lock.sh /tmp/newer/bin/python
#
# Versions are written without their local part (2.13.0+cpu becomes 2.13.0), so that the same lock takes the CPU or
# the CUDA build of torch, whichever pip is pointed at. CUDA's own packages are left to torch, which pins them itself.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
written=$(mktemp)
trap 'rm -f "$written"' EXIT

"$python" - > "$written" <<'PYTHON'
import sys
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = [*project["dependencies"]]
for extra in ("test", "bench", "slurm", "ray", "optuna", "mauve"):
    wanted += project["optional-dependencies"][extra]

pins: dict[str, str] = {}
visited: set[tuple[str, str]] = set()
todo = [Requirement(text) for text in wanted]
while todo:
    requirement = todo.pop()
    name = canonicalize_name(requirement.name)
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        sys.exit(f"{requirement} is not installed in this environment")
    version = Version(package.version)
    if not requirement.specifier.contains(version, prereleases=True):
        sys.exit(f"{requirement} is wanted, {version} is installed in this environment")
    if name.startswith(("nvidia-", "cuda-")) or name == "triton":
        continue
    pins[name] = version.public
    for extra in ("", *requirement.extras):
        if (name, extra) not in visited:
            visited.add((name, extra))
            needs = [Requirement(text) for text in package.requires or ()]
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]

print(f"# Written by scripts/lock.sh with Python {sys.version_info.major}.{sys.version_info.minor}.")
for name in sorted(pins):
    print(f"{name}=={pins[name]}")
PYTHON
cat "$written" > requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
