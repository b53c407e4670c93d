#!/usr/bin/env bash
# Coverage-guided fuzzing (libFuzzer) of what is read from disks and from the wire.
#
#   scripts/fuzz.sh [decoders|nbd]... [--secs N]    each for N seconds (60), all unless some are named
#   scripts/fuzz.sh decoders|nbd FILE...            what is in these files once: repeats what was found
#
# What covers something new is kept in target/fuzz/corpus, what makes a fuzzer fail in target/fuzz/found; then the exit code is 1.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${CARGO_TARGET_DIR:-$root/target}/fuzz
secs=60
names=()
files=()
while (($#)); do
    case $1 in
        decoders | nbd) names+=("$1") ;;
        --secs) secs=${2:?--secs needs a number}; shift ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *)
            [ -f "$1" ] || { echo "fuzz.sh: $1 is neither a fuzzer (decoders, nbd) nor a file" >&2; exit 2; }
            files+=("$1")
            ;;
    esac
    shift
done
[[ $secs =~ ^[1-9][0-9]*$ ]] || { echo "fuzz.sh: --secs $secs is not a number of seconds" >&2; exit 2; }
((${#names[@]})) || names=(decoders nbd)
((${#files[@]} == 0 || ${#names[@]} == 1)) || { echo "fuzz.sh: name the fuzzer that the files are for" >&2; exit 2; }

# As `cargo fuzz` builds, but without a sanitizer of memory, which asks for another compiler: all code is instrumented to say where it has been.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module --cfg fuzzing"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    RUSTFLAGS+=" -Cllvm-args=-sanitizer-coverage-$option"
done
cargo build --locked --release --manifest-path "$root/tests/fuzz/Cargo.toml" --target "$host" --target-dir "$work/build"
built=$work/build/$host/release
if ((${#files[@]})); then
    exec "$built/${names[0]}" "${files[@]}"
fi
status=0
for name in "${names[@]}"; do
    mkdir -p "$work/corpus/$name" "$work/seeds/$name" "$work/found"
    ASHLAR_FUZZ_SEEDS=$work/seeds/$name "$built/$name" -max_total_time="$secs" -timeout=30 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="$work/found/$name-" "$work/corpus/$name" "$work/seeds/$name" || status=1
done
((status == 0)) || echo "fuzz.sh: found something: scripts/fuzz.sh NAME $work/found/NAME-… repeats it" >&2
exit $status
