#!/usr/bin/env bash
# File systems beside each other, the same jobs in each directory, one after another: files made, looked at and removed a second (two threads),
# large writes and reads in MB/s, 4 KiB reads and writes a second.
#
#   tools/bench/files.sh [--secs SECONDS] DIRECTORY...
#   tools/bench/files.sh --loops DIRECTORY...     also ext4 and xfs on loop devices over files in $TMPDIR (root)
#
# A line for each job, a column for each directory; then ratios to the last one. Data halves when compressed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
secs=5
loops=no
while [ $# -gt 0 ]; do
    case $1 in
    --secs) secs=$2; shift 2 ;;
    --loops) loops=yes; shift ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) break ;;
    esac
done
[ $# -gt 0 ] || [ $loops = yes ] || { echo "files: name a directory" >&2; exit 2; }

(cd "$root" && cargo build --quiet --locked --release -p ashlar-nas --example files)
work=$(mktemp -d)
mounted=()
clean() {
    for point in "${mounted[@]}"; do umount -d "$point" || true; done
    rm -rf "$work"
}
trap clean EXIT
directories=("$@")
if [ $loops = yes ]; then
    for kind in ext4 xfs; do
        truncate -s 8G "$work/$kind.img"
        "mkfs.$kind" -q "$work/$kind.img"
        mkdir "$work/$kind"
        mount -o loop "$work/$kind.img" "$work/$kind"
        mounted+=("$work/$kind")
        directories+=("$work/$kind")
    done
fi

# One job of fio in the present directory: what is wanted of its result.
job() {
    local want=$1
    shift
    fio --output-format=json --name=job --directory="$here" --size=1G --buffer_compress_percentage=50 --refill_buffers \
        --runtime="$secs" "$@" | jq -r "[.jobs[] | $want] | add | floor"
}

declare -A result
names=()
keep() {
    result["$1,$here"]=$2
    case " ${names[*]-} " in *" $1 "*) ;; *) names+=("$1") ;; esac
}
for here in "${directories[@]}"; do
    while read -r name rate; do keep "$name" "$rate"; done < <("$root/target/release/examples/files" "$here" 2 30000)
    keep write-1M-MB/s "$(job '.write.bw_bytes / 1e6' --filename=f --rw=write --bs=1M --end_fsync=1)"
    keep read-1M-warm-MB/s "$(job '.read.bw_bytes / 1e6' --filename=f --rw=read --bs=1M)"
    keep read-4K-warm "$(job .read.iops --filename=f --rw=randread --bs=4k --size=256M --direct=1 --ioengine=libaio --iodepth=16 --numjobs=4 --time_based)"
    keep write-4K "$(job .write.iops --filename=f --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --numjobs=4 --time_based)"
    keep write-4K-fdatasync "$(job .write.iops --filename=f --rw=randwrite --bs=4k --fdatasync=1 --time_based)"
    keep append-4K-fsync "$(job .write.iops --filename=g --rw=write --bs=4k --size=64M --fsync=1 --time_based)"
    rm -f "$here/f" "$here/g"
done
{
    echo "job ${directories[*]}"
    for name in "${names[@]}"; do
        line=$name
        for here in "${directories[@]}"; do
            last=${result["$name,${directories[-1]}"]}
            is=${result["$name,$here"]}
            line+=" $is($(awk "BEGIN {printf \"%.2f\", $is / ($last ? $last : 1)}"))"
        done
        echo "$line"
    done
} | column -t
