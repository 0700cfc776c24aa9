#!/usr/bin/env bash
# Makes .venv ready. The Makefile calls this before every target; with a fresh stamp it costs milliseconds and says nothing.
#   PYTHON=python3.12    the interpreter to build on (3.11, 3.12 or 3.13)
#   EXTRAS="arc dev"     a part of the extras of pyproject.toml (default: all)
#   LATEST=1             the newest versions the ranges allow, ignoring constraints.txt
#   SYSTEM=1             the machine's own torch and no network: wheels come from .wheels/ (see make wheels)
# EXTRAS and SYSTEM are kept in .venv/settings until others are named. The stamp's name says what the environment was made
# from: pyproject.toml, constraints.txt and the version of Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv log=.venv/setup.log settings=.venv/settings

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
stamp() { printf '%s/.ready-%s' $venv "$({ cat pyproject.toml constraints.txt; echo "$1"; } | sha256 | cut -c1-12)"; }
built_on() { sed -n 's/^version *= *//p' $venv/pyvenv.cfg 2>/dev/null || true; }
version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
supported() { [[ $1 =~ ^3\.1[123]\. ]]; }

read_settings() { # extras and origin: those named now, else those kept, else all from the registry
  kept_extras=all kept_origin=registry
  if [[ -e $settings ]]; then { read -r kept_extras; read -r kept_origin; } < $settings; fi
  extras=${EXTRAS:-$kept_extras} origin=$kept_origin
  case ${SYSTEM-} in '') ;; 0) origin=registry ;; *) origin=system ;; esac
}

fresh() {
  [[ -x $venv/bin/python && -z ${LATEST:-} && -e $(stamp "$(built_on)") ]] &&
    [[ -z ${PYTHON:-} || $(built_on) == "$(version_of "$PYTHON")" ]] &&
    [[ $extras == "$kept_extras" && $origin == "$kept_origin" ]]
}

another_python() {
  for name in python3.13 python3.12 python3.11; do
    if supported "$(version_of $name)"; then echo $name; return; fi
  done
  echo /path/to/python3.11
}

choose_python() {
  python=${PYTHON:-python3}
  version=$(version_of "$python") || fail "$python does not start: name a Python 3.11, 3.12 or 3.13 with PYTHON=$(another_python)."
  supported "$version" || fail "$python is Python $version, but 3.11, 3.12 or 3.13 is needed: try PYTHON=$(another_python)."
}

clear_venv() { # an environment of another Python or another origin cannot be grown into this one
  if [[ -x $venv/bin/python && $(built_on) == "$version" && $origin == "$kept_origin" ]]; then rm -f $venv/.ready-*; return; fi
  rm -rf $venv && mkdir $venv
}

make_venv() {
  [[ ! -x $venv/bin/python ]] || return 0
  if [[ $origin == registry ]]; then "$python" -m venv $venv; return; fi
  "$python" -m venv --system-site-packages $venv || "$python" -m venv --system-site-packages --without-pip $venv
}

install_from_registry() {
  local limits=(-c constraints.txt)
  [[ -z ${LATEST:-} ]] || limits=(--upgrade)
  $venv/bin/python -m pip install --disable-pip-version-check --no-input "${limits[@]}" -e ".[${extras// /,}]"
}

install_from_system() {
  local pip=($venv/bin/python -m pip install --disable-pip-version-check --no-input --no-index --no-deps)
  if compgen -G '.wheels/*.whl' >/dev/null; then "${pip[@]}" .wheels/*.whl; fi
  "${pip[@]}" --no-build-isolation -e . ||
    pwd > "$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/palimpsest.pth"
}

build() {
  make_venv
  printf '%s\n%s\n' "$extras" $origin > $settings
  install_from_$origin
}

read_settings
if fresh; then [[ ${1:-} != --say ]] || say ".venv is ready (Python $(built_on))."; exit 0; fi
choose_python
exec 9>.venv.lock
if command -v flock >/dev/null && ! flock -n 9; then say "Another make is setting up .venv: waiting for it."; flock 9; fi
read_settings
if fresh; then exit 0; fi

printf 'Setting up .venv on Python %s (1-2 minutes, log in %s) ' "$version" $log >&2
while sleep 3 >/dev/null 2>&1; do printf . >&2; done 9>&- &
trap "kill $! 2>/dev/null" EXIT
clear_venv
set +e
(set -e; build) >$log 2>&1 9>&-
status=$?
set -e
if ((status)); then
  say; tail -n 20 $log >&2
  fail "Set-up failed; these are the last lines of $log. Without a network: make wheels elsewhere, then make setup SYSTEM=1."
fi
if [[ $origin == system ]]; then say; $venv/bin/python make/versions.py || fail "The machine's own packages do not suffice: see above."; fi
touch "$(stamp "$(built_on)")"
say " ready after $SECONDS s."
