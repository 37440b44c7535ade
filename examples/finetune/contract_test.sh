#!/usr/bin/env bash
# What finetune promises on the command line: exit codes, one clear line, checkpoints after a signal, resume to the bit.
# Usage: contract_test.sh FINETUNE
set -euo pipefail
finetune=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

fail() { echo "contract_test: $*" >&2; exit 1; }

# refuses CODE TEXT ARGUMENT...: ends with CODE and one line on standard error that holds TEXT.
refuses() {
  local code=$1 text=$2 got=0
  shift 2
  "$finetune" "$@" >out.txt 2>err.txt || got=$?
  [ "$got" = "$code" ] || fail "finetune $*: exit $got, want $code: $(cat err.txt)"
  [ "$(wc -l <err.txt)" = 1 ] || fail "finetune $*: want one line, got: $(cat err.txt)"
  grep -qF -- "$text" err.txt || fail "finetune $*: want '$text' in: $(cat err.txt)"
}
refuses 2 "--rank" --rank 0
refuses 2 "--steps" --steps many
refuses 2 "--nonsense" --nonsense 1
refuses 2 "method: got 'lorra', want one of lora" --method lorra
refuses 2 "names 'querry' matches none" --targets querry
refuses 2 "--option: got 'rslora', want NAME=VALUE" --option rslora
refuses 2 "option 'rslora': got 'perhaps', want true or false" --option rslora=perhaps
refuses 2 "at most min(in_features, out_features) = 16" --rank 17
refuses 2 "held_out: got 100, want less than images = 100" --images 100 --held-out 100
refuses 1 "install the Debian package dataset-fashion-mnist" --data "$scratch"
refuses 1 "No such file" --base nothing.safetensors
refuses 1 "No such file" --resume nowhere

"$finetune" --help >help.txt
for option in method rank alpha steps lr seed data base out json resume; do
  grep -q -- "--$option " help.txt || fail "--help does not explain --$option"
done
"$finetune" --list | grep -q '^lora ' || fail "--list does not show lora"

# A run that signals stop, again and again, reaches the bits of one that nothing stopped.
common=(--quiet --threads 1 --test-images 0)
began=(--method lora --steps 400 --batch 8 --images 200 --dropout 0.1 --seed 3 "${common[@]}")
"$finetune" "${began[@]}" --out whole --json whole.json >/dev/null
stopped=0
for signal in INT TERM; do
  more=("${began[@]}")
  [ ! -d parts ] || more=(--resume parts "${common[@]}")
  "$finetune" "${more[@]}" --out parts >/dev/null 2>err.txt &
  # The data is read first; a signal in that time stops the run before its next step, which is as good.
  sleep 0.7
  kill -s $signal $! 2>/dev/null || true
  code=0
  wait $! || code=$?
  case $code in
    0) ;;  # a fast machine was done before the signal
    130) stopped=$((stopped + 1)); grep -q 'go on with --resume parts' err.txt || fail "no word on --resume: $(cat err.txt)" ;;
    *) fail "signal $signal: exit $code: $(cat err.txt)" ;;
  esac
done
[ $stopped -gt 0 ] || fail "no signal came in time; take more steps"
refuses 2 "--rank: got 5, want 4, as the run to resume was begun" --resume parts --rank 5
"$finetune" --resume parts "${common[@]}" --out parts --json parts.json >/dev/null
for file in adapter_model.safetensors adapter_config.json state.safetensors options.json; do
  cmp whole/$file parts/$file || fail "$file differs after interruption and resume"
done
echo "contract_test: all kept ($stopped interruptions)"
