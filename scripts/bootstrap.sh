# Makes .venv and installs this project into it, once; sourced by the other scripts, which set ROOT first.
#
# bootstrap ""     what a user needs
# bootstrap dev    the tools of the tests too
#
# Exact versions come from scripts/constraints.txt. After pip, focusasr.runtime.libraries tries each native library.
#
# Each finished install is marked by a copy of pyproject.toml and of the constraints and the folder's name in
# .venv/installed (or installed-dev): if they differ, the install is updated; if they agree, nothing is started. .venv/unfinished
# tells of a first install that was cut off; such a .venv is made anew. A later one that fails leaves what is there, to be
# used and tried again. Everything is said on stderr: stdout belongs to the program.

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

mark() { printf '%s\n%s\n%s\n' "$ROOT" "$(<"$ROOT/pyproject.toml")" "$(<"$ROOT/scripts/constraints.txt")"; }

# True where the extra $1 is installed as pyproject.toml says now.
installed() {
    local file="$ROOT/.venv/installed${1:+-$1}"
    [[ -x $ROOT/.venv/bin/python && -f $file && ! -e $ROOT/.venv/unfinished && "$(<"$file")" == "$(mark)" ]]
}

# Sets PYTHON_FOUND to a Python that can make the environment, or ends with a remedy.
find_python() {
    local python bare=""
    for python in ${PYTHON:+"$PYTHON"} python3 python3.{13,12,11,10,14} python; do
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            PYTHON_FOUND=$python
            return
        fi
        bare=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    done
    [[ -z $bare ]] || die "$bare cannot make environments (venv and ensurepip are missing); on Debian and Ubuntu: apt-get install $bare-venv"
    die "No Python 3.10 to 3.14 found; on Debian and Ubuntu: apt-get install python3 python3-venv (or name one: PYTHON=/path/to/python3)"
}

install() {
    local venv=$ROOT/.venv
    if [[ -e $venv/unfinished || ! -x $venv/bin/python || ! -f $venv/installed || "$(head -n 1 "$venv/installed")" != "$ROOT" ]]; then
        find_python
        say "Installing focusasr into $venv: about 5 GB are fetched, once; minutes."
        rm -rf "$venv"
        mkdir "$venv"
        : >"$venv/unfinished"
        "$PYTHON_FOUND" -m venv "$venv" >&2 || die "No environment could be made in $venv; is there space and may you write there?"
    else
        say "Bringing $venv up to date${1:+ with the tools of the tests}."
        printf '%s\n' "$ROOT" >"$venv/installed" # until it is done
    fi
    local pip=("$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input)
    if ! { "${pip[@]}" --constraint "$ROOT/scripts/constraints.txt" --editable "$ROOT[${1:-train}]" &&
        "$venv/bin/python" -m focusasr.runtime.libraries; } >&2; then
        [[ ! -e $venv/unfinished ]] || die "The installation failed (see above); it starts afresh with the next call, from what pip has kept."
        [[ -z $1 ]] || die "The update failed (see above); the next call tries again."
        say "The update failed (see above); focusasr runs as it is, and the next call tries again."
        return
    fi
    mark >"$venv/installed"
    [[ -z $1 ]] || mark >"$venv/installed-$1"
    rm -f "$venv/unfinished"
}

bootstrap() {
    ! installed "$1" || return 0
    exec 9<"$ROOT/pyproject.toml"
    # Of two at once the second waits, and then finds everything done.
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        say "Waiting for another run to finish the installation."
        flock 9
    fi
    installed "$1" || install "$1"
    exec 9<&-
}
