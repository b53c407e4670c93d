# a loop device with direct I/O over such a file: the least a block device over a file costs
target_unable() { lacks root losetup; }
target_start() { make_file "$DIR/file.img"; echo "device=$(make_loop "$DIR/file.img")"; }
target_stop() { end_loops; }
