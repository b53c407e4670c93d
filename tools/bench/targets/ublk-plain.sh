# memory by ublk with buffers that are set aside: what moving the data of requests costs
. "$HERE/targets/ram.inc"
UBLK_BUFFERS=${UBLK_BUFFERS:-${CARGO_TARGET_DIR:-$HERE/../../target}/release/examples/ublk_buffers}
target_unable() { ram_lacks /dev/ublk-control "$UBLK_BUFFERS"; }
target_start() { serve_device "$UBLK_BUFFERS" "${MODE:-plain}" "$SIZE"; }
target_drop() { ram_drop; }
target_usage() { ram_usage; }
target_stop() { end_servers; }
