# memory by ublk with buffers that are set aside: what moving the data of requests costs
. "$HERE/targets/ram.inc"
UBLK_BUFFERS=${UBLK_BUFFERS:-${CARGO_TARGET_DIR:-$HERE/../../target}/release/examples/ublk_buffers}
target_unable() { ram_lacks /dev/ublk-control "$UBLK_BUFFERS"; }
target_start() {
    ram_mark
    serve "$UBLK_BUFFERS" "${MODE:-plain}" "$SIZE" "$DIR/device"
    for _ in $(seq 200); do [ ! -s "$DIR/device" ] || break; sleep 0.05; done
    echo "device=$(cat "$DIR/device")"
    echo "pids=$(server_pids)"
}
target_drop() { ram_drop; }
target_usage() { ram_usage; }
target_stop() { end_servers; }
