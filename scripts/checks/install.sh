#!/usr/bin/env bash
# Tries installations other than a clone's, and renews the constraints; each part makes its own environment (5 GB, minutes).
#
#   scripts/checks/install.sh wheel      the wheel alone, in an empty environment, on a PATH without git: it must transcribe
#   scripts/checks/install.sh lowest     all tests with the lowest versions that pyproject.toml allows
#   scripts/checks/install.sh highest    all tests with the highest of today, without constraints
#   scripts/checks/install.sh renew      highest, for Python 3.10 to 3.14; writes scripts/constraints.txt if the tests pass
#
# More arguments go to pytest.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$PWD/.venv/bin/python
[[ -x $python ]] || { echo "no .venv yet; run scripts/test first" >&2; exit 1; }
part=${1:?wheel, lowest, highest or renew}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
uv=("$work/venv/bin/uv" pip compile --quiet --all-extras pyproject.toml)

# Tests this clone with the versions that pip finds with the given options; the rest of the arguments go to pytest.
run_tests() {
    "${pip[@]}" "$1" "$2" --editable '.[dev]'
    "$work/venv/bin/python" -m focusasr.runtime.libraries
    "$work/venv/bin/python" -m pytest -q -n logical --maxprocesses 4 "${@:3}"
}

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
    "${pip[@]}" uv
    "${uv[@]}" --resolution lowest-direct --output-file "$work/lowest.txt"
    run_tests --constraint "$work/lowest.txt" "$@"
    ;;
highest)
    run_tests --upgrade-strategy eager "$@"
    ;;
renew)
    "${pip[@]}" uv
    {
        head -n 1 scripts/constraints.txt
        "${uv[@]}" --universal --python-version 3.10 --no-header --no-annotate |
            sed "/emscripten'$/d; s/ and sys_platform != 'emscripten'//; s/ ; sys_platform != 'emscripten'//"
    } >"$work/constraints.txt"
    for version in 3.10 3.11 3.12 3.13 3.14; do # each must have wheels of all of it (openai-whisper never has one)
        "${uv[@]}" --python-version "$version" --python-platform x86_64-manylinux_2_28 --only-binary :all: \
            --no-binary openai-whisper --constraint "$work/constraints.txt" --output-file "$work/resolved-$version.txt"
    done
    run_tests --constraint "$work/constraints.txt" "$@"
    mv "$work/constraints.txt" scripts/constraints.txt
    ;;
*)
    echo "$part: wheel, lowest, highest or renew" >&2
    exit 2
    ;;
esac
