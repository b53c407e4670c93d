#!/usr/bin/env bash
# Backs a volume up over NBD into a chain of qcow2 images, the first whole and each next one only what changed since, and puts the newest back:
#
#   incremental.sh save VOLUME DIR     # DIR/backup-TIME.qcow2, on top of the one before it
#   incremental.sh load VOLUME DIR     # into a volume that is at least as large; what it held is replaced up to the size of the backup
#
# Each image shows all of the volume as it was then (qemu-nbd -r -c /dev/nbd0 DIR/backup-TIME.qcow2, qemu-img convert, nbdcopy); older ones are needed
# as long as newer ones are kept. The snapshot that the next backup goes on from stays on the appliance. A backup counts once it has its name: one that is
# cut short leaves a .part and perhaps a snapshot, and the next goes on from the last that counts. ASHLAR is the command; ASHLAR_DIR chooses the daemon as
# ever. Needs jq, qemu-utils, libnbd.
set -euo pipefail

[ $# = 3 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
verb=$1 volume=$2 dir=$3
ashlar=${ASHLAR:-ashlar}
die() { echo "incremental: $*" >&2; exit 1; }
mkdir -p "$dir"
exec {alone}<"$dir"
flock -n "$alone" || die "somebody else is at work in $dir"
last=$(find "$dir" -maxdepth 1 -name 'backup-*.qcow2' -printf '%f\n' | sort | tail -n 1)
last=${last%.qcow2}

case $verb in
save)
    new=backup-$(date +%s%N)
    [[ $new > $last ]] || die "the clock says that $last is still to come: set it right first"
    # Whichever of the two the next backup will not go on from.
    drop=$new
    rm -f "$dir"/backup-*.part
    "$ashlar" snapshot create "$volume@$new" >/dev/null
    trap '"$ashlar" volume detach "$volume@$new" >/dev/null || true; [ -z "$drop" ] || "$ashlar" snapshot delete "$volume@$drop" >/dev/null' EXIT
    uri=$("$ashlar" volume attach "$volume@$new" --via nbd)
    size=$(nbdinfo --size "$uri")
    if [ -z "$last" ]; then
        qemu-img create -q -f qcow2 "$dir/$new.part" "$size"
        nbdcopy --destination-is-zero --flush -- "$uri" [ qemu-nbd -f qcow2 --cache=writeback "$dir/$new.part" ]
    else
        # Whatever is read of an image on top of the snapshot is copied into it. Then the last backup takes the place of the snapshot.
        qemu-img create -q -f qcow2 -F raw -b "$uri" "$dir/$new.part" "$size"
        nbdinfo --json --map="qemu:dirty-bitmap:$last" "$uri" | jq -r '.[] | select(.type == 1) | (.offset + .length) as $stop
            | range(.offset; $stop; 67108864) | "read \(.) \([67108864, $stop - .] | min)"' >"$dir/$new.ranges.part"
        (cat "$dir/$new.ranges.part" && echo flush) | qemu-io -C -f qcow2 "$dir/$new.part" >"$dir/$new.said.part" 2>&1
        # It says so of each, and nothing else but how long it took.
        read -r done_of wanted < <(echo "$(grep -Ec 'read ([0-9]+)/\1 bytes at offset' "$dir/$new.said.part")" "$(wc -l <"$dir/$new.ranges.part")")
        [ "$done_of" = "$wanted" ] && ! grep -qi 'fail\|error' "$dir/$new.said.part" || die "$(cat "$dir/$new.said.part")"
        qemu-img check -q -f qcow2 "$dir/$new.part"
        qemu-img rebase -q -u -F qcow2 -b "$last.qcow2" "$dir/$new.part"
    fi
    sync "$dir/$new.part"
    # From here on neither of the two goes until it is certain which of them counts.
    drop=
    mv "$dir/$new.part" "$dir/$new.qcow2"
    sync "$dir"
    drop=$last
    rm -f "$dir"/backup-*.part
    ;;
load)
    [ -n "$last" ] || die "there is no backup in $dir"
    uri=$("$ashlar" volume attach "$volume" --via nbd)
    trap '"$ashlar" volume detach "$volume" >/dev/null' EXIT
    nbdcopy --flush -- [ qemu-nbd -r -f qcow2 "$dir/$last.qcow2" ] "$uri"
    ;;
*) echo "incremental: $verb is neither save nor load" >&2; exit 2 ;;
esac
