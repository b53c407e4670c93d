#!/usr/bin/env bash
# Backs a volume up, the first time whole and then only what changed, and puts a backup back into a volume that is at least as large:
#
#   incremental.sh save VOLUME DIR
#   incremental.sh load VOLUME DIR
#
# Each backup is a list of ranges and a sparse file that has them in their places. ASHLAR is the command; ASHLAR_DIR, or nothing, chooses the daemon as ever.
# Needs jq, and FUSE for the daemon.
set -euo pipefail

[ $# = 3 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
verb=$1 volume=$2 dir=$3
ashlar=${ASHLAR:-ashlar}
mkdir -p "$dir"

copy() { # FROM TO < ranges
    while read -r offset len; do
        dd if="$1" of="$2" bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes skip="$offset" seek="$offset" count="$len" conv=notrunc status=none
    done
    sync "$2"
}

case $verb in
save)
    new=backup-$(date +%s%N)
    last=$(cat "$dir/last" 2>/dev/null || true)
    "$ashlar" snapshot create "$volume@$new" >/dev/null
    file=$("$ashlar" volume attach "$volume@$new" --via fuse)
    trap '"$ashlar" volume detach "$volume@$new" >/dev/null' EXIT
    if [ -n "$last" ]; then
        "$ashlar" -o json volume diff "$volume@$last" "$volume@$new" | jq -r '.ranges[] | "\(.offset) \(.len)"'
    else
        echo "0 $(stat -c %s "$file")"
    fi >"$dir/$new.ranges"
    : >"$dir/$new.raw"
    copy "$file" "$dir/$new.raw" <"$dir/$new.ranges"
    echo "$new" >"$dir/last"
    [ -z "$last" ] || "$ashlar" snapshot delete "$volume@$last" >/dev/null
    ;;
load)
    file=$("$ashlar" volume attach "$volume" --via fuse)
    trap '"$ashlar" volume detach "$volume" >/dev/null' EXIT
    for ranges in "$dir"/backup-*.ranges; do
        copy "${ranges%.ranges}.raw" "$file" <"$ranges"
    done
    ;;
*) echo "incremental: $verb is neither save nor load" >&2; exit 2 ;;
esac
