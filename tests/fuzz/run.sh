#!/bin/sh
# Fuzzes each target of agent/src/fuzz.rs for FUZZ_S seconds, or those that are named.
# What it learns is kept in target/fuzz/corpus; what breaks a target is in target/fuzz/found.
set -eu
cd "$(dirname "$0")/../.."
root=$PWD
seconds=${FUZZ_S:-60}
work=${CARGO_TARGET_DIR:-$root/target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
flags='-Cpasses=sancov-module'
for option in level=4 inline-8bit-counters pc-table trace-compares; do
	flags="$flags -Cllvm-args=-sanitizer-coverage-$option"
done

# With --target, so that build scripts and macros are built without coverage, which they could not link.
(cd tests/fuzz && CARGO_TARGET_DIR=$work RUSTFLAGS="$flags --cfg fuzzing" \
	"${CARGO:-cargo}" build --locked --quiet --target "$host")

[ $# -gt 0 ] || set -- $(sed -n 's/^    ("\([a-z]*\)", [a-z]*),$/\1/p' agent/src/fuzz.rs)
failed=0
for target; do
	mkdir -p "$work/corpus/$target" "$work/found/$target"
	log=$work/$target.log
	state=0
	FUZZ_TARGET=$target "$work/$host/debug/towline-fuzz" -max_total_time="$seconds" -timeout=10 \
		-rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 -artifact_prefix="$work/found/$target/" \
		"$work/corpus/$target" "tests/fuzz/corpus/$target" protocol/golden ami-snippets \
		>"$log" 2>&1 || state=$?
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
	printf '%-10s %9s executions, %6s edges covered\n' "$target" "${runs:-?}" "${coverage:-?}"
	if [ $state -ne 0 ]; then
		failed=1
		grep -E "panicked at|Test unit written|^==.*ERROR|assertion" -A 2 "$log" | head -n 12 || true
		echo "$target: broken; once mended, keep the input in tests/fuzz/corpus/$target. All it said: $log"
	fi
done
exit $failed
