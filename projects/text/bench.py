"""`make bench PROJECT=text BENCH=goals ARGS="--run R --vs R2"`, or sampler, or ablation: `bench --what` by its name."""

import runpy
import sys

BENCHES = ("ablation", "goals", "sampler")

if __name__ == "__main__":
    if not {*sys.argv[1:2]} & {*BENCHES}:
        sys.exit(f"no benchmark {' '.join(sys.argv[1:2])!r}; wanted one of {', '.join(BENCHES)}")
    runpy.run_module("projects.text", run_name="__main__", alter_sys=True)
