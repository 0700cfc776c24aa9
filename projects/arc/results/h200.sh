#!/bin/sh
# The rows of arc that need a large GPU, in order of worth: about 40 minutes on one H200; each line stands alone.
# From the root of the repository: sh projects/arc/results/h200.sh
# Never run so far. A step that fails is told and does not stop the next one.
run() { echo; echo "\$ $*"; "$@" || echo "FAILED ($?): $*"; }

run make test-gpu
run make bench PROJECT=arc BENCH="step vote"                  # smol: <= 9.06 ms per 128 examples; 419 grids in <= 60 s
run make train PROJECT=arc SIZE=smol HW=h200 RUN=day          # 12.3M pairs, then 72 views of 400 tasks: >= 20.2 % in 20 minutes
run make results PROJECT=arc RUNS=runs/arc/smol/day
run make ablate PROJECT=arc CKPT=runs/arc/smol/day ARGS="--ablate.limit=100"
# Test-time training of 20 evaluation tasks, from a base that has seen no evaluation task: solved by fresh rows, rows, adapters.
run make train PROJECT=arc SIZE=smol HW=h200 RUN=apart \
  ARGS="--data.split=training --data.train_sets=[training:demos] --trainer.max_steps=16000 --run.test_after_fit=false"
run make finetune PROJECT=arc CKPT=runs/arc/smol/apart ARGS="--finetune.tasks_mode=per_task --finetune.rows=true --data.limit=20"
