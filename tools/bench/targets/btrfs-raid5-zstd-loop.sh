# a loop device over a file on btrfs, raid5 data and raid1c3 metadata, zstd:1, on DISKS loop disks
target_unable() { lacks root losetup mkfs.btrfs mount; grep -qw btrfs /proc/filesystems || echo "the kernel has no btrfs"; }
target_start() {
    local i devices=()
    for i in $(seq "$DISKS"); do
        truncate -s "$(((SIZE > 2147483648 ? SIZE : 2147483648) >> 20))M" "$DIR/disk$i.img"
        devices+=("$(make_loop "$DIR/disk$i.img")")
    done
    mkfs.btrfs -q -f -d raid5 -m raid1c3 "${devices[@]}"
    mkdir "$DIR/mnt"
    mount -o compress=zstd:1 "${devices[0]}" "$DIR/mnt"
    truncate -s "$SIZE" "$DIR/mnt/file"
    echo "device=$(make_loop "$DIR/mnt/file")"
}
target_usage() { sync -f "$DIR/mnt"; echo "stored=$(du -c -B1 "$DIR"/disk*.img | tail -n 1 | cut -f1)"; }
target_stop() {
    # The loop device over the file goes first, or the file system stays busy.
    if [ -e "$DIR/loops" ]; then losetup -d "$(tail -n 1 "$DIR/loops")" 2>/dev/null || true; fi
    for _ in $(seq 50); do
        mountpoint -q "$DIR/mnt" || break
        umount "$DIR/mnt" 2>/dev/null || sleep 0.1
    done
    ! mountpoint -q "$DIR/mnt"
    end_loops
}
