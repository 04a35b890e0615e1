# Sourced by tests/run, .ci/run, .ci/lock and examples/quickstart: finds or installs what they need,
# and leaves nothing behind. The caller has set `name` and changed to the checkout's root.
#
# Sets: python (3.11 or later), scratch (a temporary folder that is removed at the end).
# Writes only below the checkout, into $scratch, and through apt-get.
# shellcheck shell=bash
: "${name:?}"

began=$SECONDS
child= # the process that a signal is handed on to
scratch=$(mktemp -d "${TMPDIR:-/tmp}/dxs.XXXXXX")

exec 3>&1 # where we speak while a command's output goes elsewhere
say() { printf '%s: %s\n' "$name" "$*" >&3; }
die() {
  printf '%s: failed: %s\n' "$name" "$*" >&2
  exit 1
}
verdict() { say "$* ($((SECONDS - began)) s)"; }

# A caller may define at_end, which runs before the temporary folder goes.
at_end() { :; }
_ended() {
  local code=$?
  trap '' INT TERM HUP
  at_end "$code"
  rm -rf "$scratch"
}
_interrupted() {
  trap '' INT TERM HUP
  if [ -n "$child" ]; then
    say "interrupted: ending what runs"
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" || true
  fi
  say "interrupted"
  exit $((128 + $1))
}
trap _ended EXIT
trap '_interrupted 1' HUP
trap '_interrupted 2' INT
trap '_interrupted 15' TERM

# Runs a command in the background, so that a signal reaches us at once, and is handed on.
interruptible() {
  local code=0
  "$@" <&0 3>&- &
  child=$!
  wait "$child" || code=$?
  child=
  return "$code"
}

# Runs a command that leaves no process behind, however it or we end.
contained() { interruptible "$python" .ci/contain.py "$@"; }

# Runs a command, and shows what it printed only when it fails.
quietly() {
  local code=0
  "$@" >"$scratch/output" 2>&1 || code=$?
  if [ "$code" -ne 0 ]; then
    cat "$scratch/output" >&2
    die "exit code $code from: $*"
  fi
}

# --- packages of the system ---------------------------------------------------------------------

_apt_updated=
# apt_install PACKAGE ...: as root, or with sudo.
apt_install() {
  local as_root=()
  command -v apt-get >/dev/null || die "this system has no apt-get; please install: $*"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "neither root nor sudo; please install: $*"
    as_root=(sudo)
  fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
  say "installing with apt-get: $*"
  # In the foreground: apt-get is let finish what it does, whatever comes.
  if [ -z "$_apt_updated" ]; then
    quietly "${as_root[@]}" update </dev/null
    _apt_updated=1
  fi
  quietly "${as_root[@]}" install -y --no-install-recommends "$@" </dev/null
}

# --- Python -------------------------------------------------------------------------------------

python=
_is_good_python() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
_find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 \
    /usr/bin/python3; do
    if command -v "$candidate" >/dev/null && _is_good_python "$candidate"; then
      # the interpreter itself: no version manager's stand-in, no virtual environment
      python=$("$candidate" -c 'import os, sys; b = sys._base_executable; print(b if os.path.exists(b) else sys.executable)')
      return 0
    fi
  done
  return 1
}
# Sets python; $PYTHON, when set, is tried first.
need_python() {
  _find_python && return
  apt_install python3 python3-venv
  _find_python || die "this system's python3 is older than 3.11: install a later one, or set PYTHON"
}

# A virtual environment in .venv with all that is pinned and this checkout; made anew or refreshed
# only when something that it is made of has changed. Sets PATH.
need_venv() {
  need_python
  mkdir -p .cache
  local stamp
  stamp=$(echo "$PWD: $("$python" -V)" &&
    sha256sum .ci/requirements.txt pyproject.toml deployex_cli/__init__.py)
  if [ -e .venv ] && [ ! -w .venv ]; then
    die "$PWD/.venv belongs to another user: remove it, or run this as that user"
  fi
  exec 9>.cache/setup.lock
  flock 9
  local was
  was=$(cat .venv/.stamp 2>/dev/null || true)
  if [ "$stamp" != "$was" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    # the first line names the checkout and the Python: those two cannot be changed in place
    if [ "${stamp%%$'\n'*}" = "${was%%$'\n'*}" ] && .venv/bin/python -c '' 2>/dev/null; then
      say "refreshing .venv"
      rm .venv/.stamp
    else
      say "making .venv for $("$python" -V)"
      rm -rf .venv
      quietly contained "$python" -m venv .venv
    fi
    local pip=(env PIP_CACHE_DIR="$PWD/.cache/pip" PIP_DISABLE_PIP_VERSION_CHECK=1
      PIP_ROOT_USER_ACTION=ignore .venv/bin/python -m pip install --no-input)
    quietly contained "${pip[@]}" --require-hashes -r .ci/requirements.txt
    quietly contained "${pip[@]}" --no-deps --no-build-isolation -e .
    printf '%s\n' "$stamp" >.venv/.stamp
  fi
  exec 9>&-
  PATH=$PWD/.venv/bin:$PATH
  export PATH
}

# --- Erlang and Elixir --------------------------------------------------------------------------

_beam_is_there() {
  local program
  for program in erl erlc epmd escript mix; do
    command -v "$program" >/dev/null || return 1
  done
}
# erl, erlc, epmd, escript and mix.
need_beam() {
  _beam_is_there && return
  apt_install elixir
  _beam_is_there || die "Erlang or Elixir is still missing after the installation"
}

# need_program PROGRAM [PACKAGE]
need_program() { command -v "$1" >/dev/null || apt_install "${2:-$1}"; }
# The same for what can be done without: only where it needs no password.
want_program() {
  command -v "$1" >/dev/null && return
  command -v apt-get >/dev/null || return 0
  [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null || return 0
  apt_install "${2:-$1}"
}

# build_packages EXAMPLE ...: the examples' release packages, in .cache/packages.
build_packages() {
  local example
  mkdir -p .cache/packages
  for example in "$@"; do
    TMPDIR=$scratch quietly contained "$python" "examples/$example/build" .cache/packages
  done
}
