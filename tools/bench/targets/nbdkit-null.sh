# nbdkit's null plugin: the NBD protocol alone, no data kept
target_unable() { lacks nbdkit; }
target_start() {
    # In the foreground nbdkit would end with the shell that started it.
    nbdkit -P "$DIR/server.pids" -U "$DIR/socket" --threads=16 null "$SIZE" </dev/null >"$DIR/server.log" 2>&1
    wait_for_socket "$DIR/socket"
    echo "uri=$(unix_uri "$DIR/socket")"
    echo "pids=$(server_pids)"
}
target_usage() { echo stored=0; }
