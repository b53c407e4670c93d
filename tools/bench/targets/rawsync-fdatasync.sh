# the same by write, then fdatasync
. "$HERE/targets/rawsync.sh"
target_job() { "$HERE/rawsync.py" --dir "$DIR" --files "$(copies)" --seconds "$2" --method fdatasync; }
