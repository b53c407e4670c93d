# the ublk front end over memory: what the driver and the front end cost
. "$HERE/targets/ram.inc"
UBLK_MEMORY=${UBLK_MEMORY:-${CARGO_TARGET_DIR:-$HERE/../../target}/release/examples/ublk_memory}
target_unable() { ram_lacks /dev/ublk-control "$UBLK_MEMORY"; }
target_start() { serve_device "$UBLK_MEMORY" "$SIZE"; }
target_drop() { ram_drop; }
target_usage() { ram_usage; }
target_stop() { end_servers; }
