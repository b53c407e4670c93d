#!/usr/bin/env bash
# Runs each test of a test binary in a process of its own, bounded in time, one after another.
#
#   each-test.sh BINARY SECONDS [WORD]
#
# What they print goes to tests.log in the shared folder. Ends with the line a test runner ends with, and with 1 if a test failed or none ran. A test that does not end is killed with all
# it started in its process group.
set -uo pipefail
binary=$1 seconds=$2 only=${3:-}
start=$SECONDS

names=$("$binary" --list --format terse) || { echo "$binary does not list its tests"; exit 1; }
mapfile -t tests < <(sed -n 's/: test$//p' <<<"$names" | grep -F -- "$only")
echo "running ${#tests[@]} tests on Linux $(uname -r)"
passed=0 failed=() out=$(mktemp)
for test in "${tests[@]}"; do
    began=$SECONDS
    timeout -k 10 "$seconds" "$binary" --exact "$test" --nocapture >"$out" 2>&1 </dev/null
    status=$?
    cat "$out" >>"${ASHLAR_VM_DIR:-/tmp}/tests.log"
    # A name that matches nothing ends well too: it must have run.
    if [ $status = 0 ] && grep -q '^test result: ok\. 1 passed' "$out"; then
        passed=$((passed + 1))
        echo "test $test ... ok ($((SECONDS - began)) s)"
    else
        failed+=("$test")
        case $status in
        124 | 137) why="not ended after $seconds s" ;;
        *) why="status $status" ;;
        esac
        echo "test $test ... FAILED ($why, $((SECONDS - began)) s)"
        cat "$out"
        echo "--- the kernel's last lines"
        dmesg | tail -n 30
        echo "---"
    fi
done
result=ok
if [ ${#failed[@]} -gt 0 ] || [ $passed = 0 ]; then
    result=FAILED
    printf 'failed: %s\n' "${failed[@]}"
fi
echo
echo "test result: $result. $passed passed; ${#failed[@]} failed; 0 ignored; 0 measured; 0 filtered out; finished in $((SECONDS - start)).00s"
[ $result = ok ]
