# a volume of an appliance of DISKS files, by NBD over a unix socket
. "$HERE/targets/ashlar.inc"
target_unable() { ashlar_lacks; }
target_start() { ashlar_start nbd; echo "uri=$(ashlar_uri)"; }
