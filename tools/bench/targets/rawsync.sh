# write + RWF_DSYNC to tolerance + 1 files in parallel: what a mirrored log can reach (only the fsync job)
copies() { case $TOLERANCE in none) echo 1 ;; single) echo 2 ;; *) echo 3 ;; esac; }
target_unable() { lacks python3; }
target_start() { echo "own_jobs=randwrite4k-q1-fsync"; echo "note=$(copies) files"; }
target_job() { "$HERE/rawsync.py" --dir "$DIR" --files "$(copies)" --seconds "$2"; }
target_usage() { echo stored=0; }
