# a volume of an appliance over RAM disks, by ublk: redundant, thin, deduplicated, compressed
. "$HERE/targets/ram.inc"
. "$HERE/targets/ashlar.inc"
target_unable() { ashlar_lacks root modprobe /dev/ublk-control; }
target_start() {
    local disks arguments=()
    mapfile -t disks < <(ram_disks)
    ram_mark
    mkdir -p "$lab"
    for disk in "${disks[@]}"; do arguments+=(--disk "$disk"); done
    "$ASHLAR" pool create bench "${arguments[@]}" --tolerance "$TOLERANCE" >&2
    printf 'disks = [%s]\n' "$(printf '"%s", ' "${disks[@]}")" >"$lab/ashlar.toml"
    appliance_serve
    "$ASHLAR" --dir "$lab" volume create bench --size "$SIZE" >/dev/null
    "$ASHLAR" -o json --dir "$lab" volume attach bench --via ublk >"$DIR/attach.json"
    echo "device=$(jq -re .device "$DIR/attach.json")"
    echo "note=$DISKS disks, tolerance $TOLERANCE"
    echo "pids=$(server_pids)"
}
appliance_serve() {
    serve "$ASHLAR" --dir "$lab" serve
    for _ in $(seq 400); do ! "$ASHLAR" --dir "$lab" pool status >/dev/null 2>&1 || return 0; sleep 0.05; done
    tail -n 5 "$DIR/server.log" >&2
    return 1
}
target_drop() { ram_drop; }
target_usage() {
    ram_usage
    "$ASHLAR" -o json --dir "$lab" pool status | jq -r '"used=\(.used)", "unique_data=\(.reduction.unique)", "compressed=\(.reduction.stored)"'
}
target_stop() { end_servers; ram_end; }
