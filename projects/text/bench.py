"""`make bench PROJECT=text BENCH=goals ARGS="--run R --vs R2"`: what `python -m projects.text bench --run R` says."""

import runpy
import sys

if __name__ == "__main__":
    if sys.argv[1:2] != ["goals"]:
        sys.exit(f"no benchmark {' '.join(sys.argv[1:2])!r}; wanted goals")
    runpy.run_module("projects.text", run_name="__main__", alter_sys=True)
