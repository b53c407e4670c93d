# one RAM disk: what the kernel's block layer costs
. "$HERE/targets/ram.inc"
target_unable() { ram_lacks; }
target_start() { ram_disks >/dev/null; ram_mark; echo "device=/dev/ram0"; }
target_drop() { ram_drop; }
target_usage() { ram_usage; }
target_stop() { ram_end; }
