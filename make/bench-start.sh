#!/usr/bin/env bash
# Seconds from a clone of this commit to the first update of `make train PROJECT=template SIZE=nano`: cold (no .venv, so
# set-up is in it), then warm. Prints both and keeps them in runs/bench/<utc>-start.json.
#   make/bench-start.sh warm    only the second, with the .venv of this folder
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

seconds() { # from `git clone` (if $1 is cold) or from make to the first line that tells of an update
  local begin=$EPOCHREALTIME line
  [[ $1 == warm ]] || git clone --quiet "$home" "$folder/clone"
  while IFS= read -r line; do
    if [[ $line == update\ * ]]; then
      awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'
      return
    fi
  done < <(make -C "$folder/clone" train PROJECT=template SIZE=nano ARGS="--logging.every=1 --trainer.max_steps=20" 2>"$folder/log")
  cat "$folder/log" >&2
  return 1
}

cold=null
if [[ ${1:-} == warm ]]; then
  git clone --quiet "$home" "$folder/clone"
  ln -s "$(readlink -f .venv)" "$folder/clone/.venv"
else
  cold=$(seconds cold)
fi
warm=$(seconds warm)
utc=$(date -u +%Y%m%dT%H%M%S)
mkdir -p runs/bench
printf '{"what": "start", "git": "%s", "machine": "%s cores", "cold_s": %s, "warm_s": %s, "goal": "480 cold, 15 warm"}\n' \
  "$(git rev-parse --short=12 HEAD)" "$(getconf _NPROCESSORS_ONLN)" "$cold" "$warm" | tee "runs/bench/$utc-start.json"
