#!/usr/bin/env bash
# Backs a volume up, the first time whole and then only what changed, and puts a backup back into a volume that is at least as large:
#
#   incremental.sh save VOLUME DIR
#   incremental.sh load VOLUME DIR
#
# A backup is a list of ranges and a sparse file that has them in their places. It counts once its list has its name; the newest one that counts is
# what the next one goes on from. A run that is killed leaves its snapshot, backup-TIME, attached. ASHLAR is the command; ASHLAR_DIR, or nothing, chooses the daemon as ever. Needs jq, and FUSE for the daemon.
set -euo pipefail

[ $# = 3 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
verb=$1 volume=$2 dir=$3
ashlar=${ASHLAR:-ashlar}
mkdir -p "$dir"

copy() { # FROM TO < ranges
    while read -r offset len; do
        dd if="$1" of="$2" bs=1M iflag=fullblock,skip_bytes,count_bytes oflag=seek_bytes \
            skip="$offset" seek="$offset" count="$len" conv=notrunc status=none
    done
    sync "$2"
}

case $verb in
save)
    new=backup-$(date +%s%N)
    last=$(find "$dir" -name 'backup-*.ranges' -printf '%f\n' | sort | tail -n 1)
    last=${last%.ranges} kept=$new
    rm -f "$dir"/backup-*.part
    "$ashlar" snapshot create "$volume@$new" >/dev/null
    # Whichever of the two the next backup will not go on from.
    trap '"$ashlar" volume detach "$volume@$new" >/dev/null || true; [ -z "$kept" ] || "$ashlar" snapshot delete "$volume@$kept" >/dev/null' EXIT
    file=$("$ashlar" volume attach "$volume@$new" --via fuse)
    if [ -n "$last" ]; then
        "$ashlar" -o json volume diff "$volume@$last" "$volume@$new" | jq -r '.ranges[] | "\(.offset) \(.len)"'
    else
        echo "0 $(stat -c %s "$file")"
    fi >"$dir/$new.ranges.part"
    : >"$dir/$new.raw.part"
    copy "$file" "$dir/$new.raw.part" <"$dir/$new.ranges.part"
    mv "$dir/$new.raw.part" "$dir/$new.raw"
    sync "$dir/$new.ranges.part" "$dir"
    mv "$dir/$new.ranges.part" "$dir/$new.ranges"
    kept=$last
    sync "$dir"
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
