# dm-thin (64 KiB blocks) on md raid5 or raid6 over RAM disks: thin, no reduction
. "$HERE/targets/ram.inc"
target_unable() { ram_lacks mdadm dmsetup; }
target_start() {
    local sectors
    md_start
    modprobe dm-thin-pool
    sectors=$(blockdev --getsz "$array")
    dmsetup create bench-pool --table "0 $sectors thin-pool /dev/ram$DISKS $array 128 0" >&2
    dmsetup message bench-pool 0 "create_thin 0"
    dmsetup create bench-thin --table "0 $((SIZE / 512)) thin /dev/mapper/bench-pool 0" >&2
    dmsetup mknodes
    echo "device=/dev/mapper/bench-thin"
}
target_drop() { ram_drop; }
target_usage() {
    ram_usage
    dmsetup status bench-pool | awk '{split($6, a, "/"); print "used=" a[1] * 65536}'
}
target_stop() { dm_stop bench-thin bench-pool; md_stop; ram_end; }
