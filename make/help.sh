#!/usr/bin/env bash
# The page of `make help`: examples, then each target of the Makefile with its `## ` comment under its `##@ ` heading.
set -euo pipefail
cat <<'TEXT'
Palimpsest: learning by corruption and restoration.   make <target> [NAME=value ...]

  make train PROJECT=template                       set up if needed, train the smallest size, test it
  make train PROJECT=template SIZE=smol RUN=a SEED=1 ARGS="--trainer.max_steps=500"
  make train PROJECT=template RUN=a RESUME=1        go on where it stopped
  make evaluate PROJECT=template CKPT=runs/template/nano/001
  make finetune PROJECT=template CKPT=runs/template/nano/001
  make config PROJECT=template SIZE=lorge HW=3x3090 plan for a machine you do not have
TEXT
awk '
  /^##@ / { printf "\n%s\n", substr($0, 5) }
  /^[a-z-]+:.*## / { name = $0; sub(/:.*/, "", name); text = $0; sub(/.*## /, "", text); printf "  %-12s %s\n", name, text }
' "$1"
cat <<'TEXT'

ARGS="..." goes to the command unchanged (any flag of the command line); DEBUG=1 shows the traceback of a mistake.
TEXT
