# a raw file served by qemu-nbd with io_uring and no host cache
target_unable() { lacks qemu-nbd; }
target_start() {
    make_file "$DIR/file.img"
    serve qemu-nbd --persistent --shared=8 --socket="$DIR/socket" --format=raw --cache=none --aio=io_uring --discard=unmap "$DIR/file.img"
    wait_for_socket "$DIR/socket"
    echo "uri=$(unix_uri "$DIR/socket")"
    echo "pids=$(server_pids)"
}
