# a loop device with direct I/O over the FUSE file: a block device of the kernel
. "$HERE/targets/ashlar.inc"
target_unable() { ashlar_lacks root losetup fusermount3 /dev/fuse; }
target_start() { ashlar_start fuse; echo "device=$(make_loop "$(ashlar_path)")"; }
target_drop() {
    end_loops
    "$ASHLAR" lab stop --dir "$lab" >/dev/null
    "$ASHLAR" lab start --dir "$lab" >/dev/null
    ashlar_pids
    echo "device=$(make_loop "$(ashlar_path)")"
}
target_stop() { end_loops; [ ! -d "$lab" ] || "$ASHLAR" lab down --dir "$lab" >/dev/null; }
