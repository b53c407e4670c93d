# the same volume as a FUSE file
. "$HERE/targets/ashlar.inc"
target_unable() { ashlar_lacks fusermount3 /dev/fuse; }
target_start() { ashlar_start fuse; echo "device=$(ashlar_path)"; }
