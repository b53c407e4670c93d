# dm-vdo with deduplication and compression on md raid5 or raid6 over RAM disks; its tools are Debian 13's, below VDO_ROOT
. "$HERE/targets/ram.inc"
VDO_ROOT=${VDO_ROOT:-/var/cache/ashlar-vdo}
# The tools need the libraries they were built against.
vdo_tool() { "$VDO_ROOT"/usr/lib64/ld-linux-x86-64.so.2 --library-path "$VDO_ROOT/usr/lib/x86_64-linux-gnu" "$VDO_ROOT/usr/bin/$1" "${@:2}"; }
target_unable() { ram_lacks mdadm dmsetup "$VDO_ROOT/usr/bin/vdoformat"; }
target_start() {
    md_start
    modprobe dm-vdo
    vdo_tool vdoformat --force --logical-size="$((SIZE / 1024))K" --uds-memory-size=0.25 --slab-bits=17 "$array" >&2
    dmsetup create bench-vdo --table "0 $((SIZE / 512)) vdo V4 $array $(($(blockdev --getsz "$array") / 8)) 4096 32768 16380 compression on \
        ack 1 bio 2 cpu 2 hash 1 logical 1 physical 1" >&2
    dmsetup mknodes
    echo "device=/dev/mapper/bench-vdo"
}
target_drop() { ram_drop; }
target_usage() {
    ram_usage
    # The driver's own count, in blocks of 4 KiB.
    dmsetup message bench-vdo 0 stats | tr ',' '\n' | sed -n 's/.*dataBlocksUsed *: *//p' | head -n 1 | awk '{print "used=" $1 * 4096}'
}
target_stop() { dm_stop bench-vdo; md_stop; ram_end; }
