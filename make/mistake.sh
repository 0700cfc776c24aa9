#!/usr/bin/env bash
# One sentence for a wrong word on the command line: what was seen, what exists, what comes nearest. Always fails.
#   mistake.sh SIZE nmao "nano smol" arc
set -euo pipefail
kind=$1 seen=$2 known=$3 project=${4:-}

nearest() { # of the words on standard input, the one fewest edits away from $1, if at most half of it must change
  awk -v a="$1" '
    function least(x, y, z) { return x < y ? (x < z ? x : z) : (y < z ? y : z) }
    { n = length(a); m = length($0)
      for (j = 0; j <= m; j++) d[0, j] = j
      for (i = 1; i <= n; i++) { d[i, 0] = i
        for (j = 1; j <= m; j++) {
          d[i, j] = least(d[i-1, j] + 1, d[i, j-1] + 1, d[i-1, j-1] + (substr(a, i, 1) != substr($0, j, 1)))
          if (i > 1 && j > 1 && substr(a, i, 1) == substr($0, j-1, 1) && substr(a, i-1, 1) == substr($0, j, 1) && d[i-2, j-2] + 1 < d[i, j])
            d[i, j] = d[i-2, j-2] + 1 } }
      if (NR == 1 || d[n, m] < best) { best = d[n, m]; word = $0 } }
    END { if (best <= length(a) / 2) print word }'
}

list=${known// /, }
near=$([[ -z $known ]] || tr ' ' '\n' <<<"$known" | nearest "$seen")
hint=${near:+ Did you mean $near?}
case $kind in
  target) say="make has no target $seen: make help lists them, and a project's own verb needs PROJECT=<name>." ;;
  BENCH) say="$project has no measurements of its own: there is no bench.py in its folder." ;;
  CKPT) say="finetune starts from a checkpoint and CKPT= is not named; the runs here: ${list:-none yet, so train one first}." ;;
  tests) say="$project has no tests of its own in tests/*/$project or tests/*/test_$project*.py." ;;
  RUN) say="RUN=$seen names no run folder here; those with a config are: ${list:-none yet}." ;;
  SIZE | STAGE) say="$kind=$seen does not exist in configs/$project; choose one of: ${list:-none yet}." ;;
  *) say="$kind=$seen does not exist; choose one of: ${list:-none yet}."
     [[ $seen ]] || say="$kind= is not named; choose one of: ${list:-none yet}." ;;
esac
printf '%s%s\n' "$say" "$hint" >&2
exit 2
