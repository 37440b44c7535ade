#!/usr/bin/env bash
# User seconds to compile one LoRA step with `#include <deltaw/deltaw.hpp>`, with products by Eigen and by a BLAS, over
# those of the same step on bare Eigen, at -O2. Interleaved: each round compiles the three one after the other and gives a
# ratio each; printed is the median over the rounds, with the least and the greatest.
# Usage: compile_time.sh [--out DIR] [--rounds N] [--full]
# From the environment: CXX, DELTAW_BENCH_INCLUDES (-I and -isystem flags), DELTAW_BENCH_BLAS (those of a BLAS, or empty).
set -euo pipefail

out= rounds=9
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=$(cd "$2" && pwd); shift 2 ;;  # as the caller sees it
    --rounds) rounds=$2; shift 2 ;;
    --full) rounds=15; shift ;;
    *) echo "compile_time: got '$1', want --out DIR, --rounds N or --full" >&2; exit 2 ;;
  esac
done
[ "$rounds" -ge 7 ] || { echo "compile_time: got $rounds rounds, want 7 or more" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${out:-build/bench}

export CCACHE_DISABLE=1
compiler=${CXX:-c++}
includes=${DELTAW_BENCH_INCLUDES:--Iinclude -isystem /usr/include/eigen3}
blas=${DELTAW_BENCH_BLAS-}
limit=1.5

# seconds SOURCE FLAG...: user seconds of one compilation.
seconds() {
  local TIMEFORMAT=%U
  # shellcheck disable=SC2086
  { time "$compiler" -std=c++20 -O2 $includes "${@:2}" -c "bench/compile_time/$1.cpp" -o /dev/null >&2; } 2>&1 | tail -n 1
}

seconds eigen_step >/dev/null # warm the file cache
seconds lora_step >/dev/null
for ((round = 0; round < rounds; ++round)); do
  bare=$(seconds eigen_step)
  echo "eigen $bare $(seconds lora_step)"
  # shellcheck disable=SC2086
  if [ -n "$blas" ]; then echo "blas $bare $(seconds lora_step -DDELTAW_CBLAS=1 $blas)"; fi
done | sort -k1,1 | awk -v limit=$limit -v out="$out/compile_time.json" '
  function sort(list, n,   i, j, kept) {
    for (i = 2; i <= n; ++i) {
      kept = list[i]
      for (j = i - 1; j > 0 && list[j] > kept; --j) list[j + 1] = list[j]
      list[j + 1] = kept
    }
  }
  function median(list, n) { return (list[int((n + 1) / 2)] + list[int(n / 2) + 1]) / 2 }
  function finish() {
    if (!n) return
    sort(bare, n); sort(step, n); sort(ratio, n)
    verdict = median(ratio, n) <= limit ? "reached" : "MISSED"
    printf "products by %-5s  bare Eigen %.2f s, LoRA step %.2f s, ratio %.3f [%.3f, %.3f] of %d (at most %.1f: %s)\n",
      name, median(bare, n), median(step, n), median(ratio, n), ratio[1], ratio[n], n, limit, verdict
    rows = rows (rows ? ",\n" : "") sprintf("{\"products\": \"%s\", \"bare_seconds\": %.3f, \"step_seconds\": %.3f, " \
      "\"ratio\": %.4f, \"ratio_least\": %.4f, \"ratio_greatest\": %.4f, \"rounds\": %d}",
      name, median(bare, n), median(step, n), median(ratio, n), ratio[1], ratio[n], n)
    n = 0
  }
  $1 != name { finish(); name = $1 }
  { ++n; bare[n] = $2; step[n] = $3; ratio[n] = $3 / $2 }
  END { finish(); print "[\n" rows "\n]" > out }'
