# md raid5 or raid6 (by tolerance) over RAM disks: no thin provisioning, no reduction, no checksums
. "$HERE/targets/ram.inc"
target_unable() { ram_lacks mdadm; }
target_start() { md_start; echo "device=$array"; }
target_drop() { ram_drop; }
target_usage() { ram_usage; }
target_stop() { md_stop; ram_end; }
