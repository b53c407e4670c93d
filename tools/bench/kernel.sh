#!/usr/bin/env bash
# Volumes by ublk beside what Linux has itself, dm-vdo and dm-thin on md arrays, all on the same RAM disks in one boot of a virtual machine:
#
#   tools/bench/kernel.sh [--memory MIB] [--limit SECONDS] [--] [options and targets of `bench.py run`]
#
# Installs mdadm, and unpacks Debian 13's vdo with its libraries (Debian 12 has none), as root. The machine is emulated where there is no
# virtualization: then only ratios say something. Figures are appended to target/bench/kernel.jsonl.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
vdo=${VDO_ROOT:-/var/cache/ashlar-vdo}
memory=12288
limit=7200
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

die() { printf 'kernel: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
    --memory) memory=$2; shift 2 ;;
    --limit) limit=$2; shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --) shift; break ;;
    *) break ;;
    esac
done

[ "$(id -u)" = 0 ] || die "needs root, for packages and for the machine's disks"
command -v mdadm >/dev/null || apt-get install -q -y --no-install-recommends mdadm
[ -x "$vdo/usr/bin/vdoformat" ] || "$root/scripts/unpack.sh" trixie "$vdo" vdo
(cd "$root" && cargo build --locked --release -p ashlar-tools)
case " $* " in
*" ublk-"*) (cd "$root" && cargo build --locked --release -p ashlar-blockdev --example ublk_memory --example ublk_buffers) ;;
esac

# The guest sees this machine's files and cannot change them: figures come back on its terminal.
mkdir -p "$root/target/bench"
cd "$root"
log=$root/target/bench/kernel.log
set +e
scripts/vm.sh run --memory "$memory" --limit "$limit" -- bash -c '
    modprobe ublk_drv
    status=0
    "$0" run --dir /dev/shm/bench --out "$ASHLAR_VM_DIR/kernel.jsonl" "$@" || status=$?
    sed "s/^/RESULT /" "$ASHLAR_VM_DIR/kernel.jsonl"
    exit $status' "$here/bench.py" "$@" | tee "$log" | grep --line-buffered -v '^RESULT '
status=${PIPESTATUS[0]}
sed -n 's/^RESULT //p' "$log" >>"$root/target/bench/kernel.jsonl"
exit "$status"
