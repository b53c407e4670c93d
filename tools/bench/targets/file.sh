# a preallocated file on the local file system, O_DIRECT: what the storage below allows
target_start() { make_file "$DIR/file.img"; echo "device=$DIR/file.img"; }
