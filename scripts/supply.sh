#!/usr/bin/env bash
# Tries what is installed in other ways than a clone installs it; each part makes an environment of its own (5 GB, minutes).
#
#   scripts/supply.sh wheel      the wheel alone, in an empty environment, on a PATH without git: it must transcribe
#   scripts/supply.sh lowest     all tests with the lowest versions that pyproject.toml allows; more arguments go to pytest
#
# scripts/test installs the highest.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
[[ -x $python ]] || { echo "no .venv yet; run scripts/test first" >&2; exit 1; }
part=${1:?wheel or lowest}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check)

case $part in
wheel)
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work" .
    "${pip[@]}" "$work"/focusasr-*.whl
    cp tests/data/sample.flac "$work"
    cd "$work"
    text=$(env -i HOME="$work" PATH="$work/venv/bin" focusasr transcribe sample.flac)
    echo "$(ls focusasr-*.whl), $(du -k focusasr-*.whl | cut -f1) KiB, $(venv/bin/python -m pip list | tail -n +3 | wc -l) packages: $text"
    [[ $text == *four* ]]
    ;;
lowest)
    "$python" - >"$work/lowest.txt" <<'END'
try:
    import tomllib
except ImportError:
    import tomli as tomllib

from packaging.requirements import Requirement

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for requirement in map(Requirement, [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]):
    for bound in requirement.specifier:
        if bound.operator == ">=":
            print(f"{requirement.name}=={bound.version}")
END
    "${pip[@]}" --constraint "$work/lowest.txt" --editable '.[dev]'
    "$work/venv/bin/python" -m pytest -q "$@"
    ;;
*)
    echo "$part: wheel or lowest" >&2
    exit 2
    ;;
esac
