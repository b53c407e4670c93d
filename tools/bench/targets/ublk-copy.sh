# memory by ublk where the driver copies when it is asked to: what moving the data of requests costs
MODE=copy
. "$HERE/targets/ublk-plain.sh"
