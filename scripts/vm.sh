#!/usr/bin/env bash
# A virtual machine with Debian's own kernel, and this machine's root file system in it, which it can read and not change.
#
#   scripts/vm.sh tests BINARY           boot once, run each test of a built test binary, end with their result
#   scripts/vm.sh run [-- COMMAND...]    boot, run a command as root in the directory of the caller, end with its status
#   scripts/vm.sh service -- COMMAND...  the same as a service of systemd, which is the first process; see scripts/vm/service.sh
#   scripts/vm.sh shell                  boot, and a shell on this terminal (exit ends the machine)
#
# Options, before BINARY or --:
#   --limit SECONDS        for the whole machine (default 1500; shell: none)
#   --test-limit SECONDS   for each test (default 300)
#   --memory MIB           of the machine (default 3072)
#   --kernel SERIES        the newest kernel of this series (default 6.12), or of all: newest
#   --only WORD            only tests with this word in their names
#   --keep                 keep the scratch folder, also on success
#
# What the guest writes goes to its memory and is gone with it, except below $ASHLAR_VM_DIR: a folder shared with this machine. Variables
# ASHLAR_* are passed on. Drives: /dev/disk/by-id/virtio-pool0 to virtio-pool5 (1 GiB each), a SCSI drive with serial scsi0, NVMe drives
# nvme-good and nvme-worn (with a critical warning), a SATA drive ata0; docs/design/0009-real-kernel-tests.md has the table.
# Needs what `scripts/setup.sh --vm` installs; runs as any user. What that user may not read, the guest cannot read either.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

limit=1500
test_limit=300
memory=3072
only=
series=6.12
keep=no
# Where scripts/setup.sh unpacks the kernel.
kernels=/var/cache/ashlar-vm
# Status qemu ends with when the guest wrote 0x10 to the exit device: (0x10 << 1) | 1. A crash, a reset, a halt cannot give it.
ended_in_order=33

die() { printf 'vm: %s\n' "$*" >&2; exit 125; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

# Sets kernel and modules: the newest of the series that was unpacked.
find_kernel() {
    local found pattern="vmlinuz-$series.*-amd64" setup=--vm
    [ "$series" != newest ] || pattern='vmlinuz-*-amd64' setup=--vm-newest
    # shellcheck disable=SC2086
    found=$(cd "$kernels/boot" 2>/dev/null && printf '%s\n' $pattern | sort -V | tail -n 1) || true
    release=${found#vmlinuz-}
    kernel=$kernels/boot/$found
    [ -n "$found" ] && [ -r "$kernel" ] && [ -d "$kernels/lib/modules/$release" ] ||
        die "no kernel $series below $kernels: run scripts/setup.sh $setup"
    command -v qemu-system-x86_64 >/dev/null || die "no qemu-system-x86_64: run scripts/setup.sh --vm"
    ! ldd "$(command -v busybox)" >/dev/null 2>&1 || die "busybox is not linked statically: run scripts/setup.sh --vm"
}

# A first root with busybox and the modules that reach the real one. Modules in the order in which they must be loaded.
make_initramfs() {
    local top=$scratch/initramfs module name
    mkdir -p "$top"/{bin,modules,proc,sys,dev,lower,upper,root}
    cp "$(command -v busybox)" "$top/bin/busybox"
    ln -s busybox "$top/bin/sh"
    cp "$here/vm/init" "$top/init"
    cp "$here/vm/service.sh" "$top/service.sh"
    chmod 755 "$top/init"
    for name in 9pnet_virtio 9p overlay; do
        modprobe -d "$kernels" -S "$release" --show-depends "$name" || die "kernel $release has no module $name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$scratch/modules"
    while IFS= read -r module; do
        name=${module##*/}
        case $name in
        *.xz) name=${name%.xz}; xz -dc "$module" >"$top/modules/$name" ;;
        *) cp "$module" "$top/modules/$name" ;;
        esac
        echo "$name" >>"$top/modules/order"
    done <"$scratch/modules"
    (cd "$top" && find . | cpio -o -H newc -R 0:0 --quiet) >"$scratch/initramfs.cpio"
    rm -r "$top"
}

# Drives are sparse files. The guest's flushes need not reach this machine's disks: it never outlives this process.
drive() {
    local id=$1 size=$2
    truncate -s "$size" "$scratch/$id.img"
    qemu+=(-drive "if=none,id=$id,file=$scratch/$id.img,format=raw,cache=unsafe,discard=unmap,detect-zeroes=off")
}

describe_machine() {
    qemu=(
        qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 4 -m "${memory}M"
        -nodefaults -no-user-config -display none -no-reboot
        -kernel "$kernel" -initrd "$scratch/initramfs.cpio"
        -append "console=ttyS0 panic=-1 oops=panic loglevel=5 ashlar.mode=$1 ashlar.modules=$kernels/lib/modules/$release"
        -device isa-debug-exit,iobase=0xf4,iosize=0x04
        -serial "file:$scratch/console.log"
        -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap
        -device virtio-9p-pci,fsdev=root,mount_tag=root
        -fsdev "local,id=shared,path=$scratch/shared,security_model=none"
        -device virtio-9p-pci,fsdev=shared,mount_tag=shared
        -chardev stdio,id=terminal,signal=off
        -device virtio-serial-pci -device virtconsole,chardev=terminal
        -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng
    )
    local n
    for n in 0 1 2 3 4 5; do
        drive "pool$n" 1G
        qemu+=(-device "virtio-blk-pci,drive=pool$n,serial=pool$n")
    done
    drive scsi0 1G
    qemu+=(-device virtio-scsi-pci,id=scsi -device scsi-hd,bus=scsi.0,drive=scsi0,serial=scsi0)
    drive nvme-good 1G
    qemu+=(-device nvme,drive=nvme-good,serial=nvme-good)
    # Bit 2 of the critical warnings: reliability is degraded.
    drive nvme-worn 1G
    qemu+=(-device nvme,drive=nvme-worn,serial=nvme-worn,smart_critical_warning=4)
    drive ata0 1G
    qemu+=(-device ide-hd,bus=ide.0,drive=ata0,serial=ata0)
}

# What the guest runs, as a script in the shared folder.
write_job() {
    local variable
    {
        echo 'export ASHLAR_VM=1'
        for variable in ${!ASHLAR_*}; do
            case $variable in
            ASHLAR_VM | ASHLAR_VM_DIR) ;;
            *) printf 'export %s=%q\n' "$variable" "${!variable}" ;;
            esac
        done
        echo ': >"$ASHLAR_VM_DIR/begun"'
        printf 'cd %q\n' "$PWD"
        printf 'exec'
        printf ' %q' "$@"
        echo
    } >"$scratch/shared/job"
}

boot() {
    local mode=$1 status=0 result
    shift
    find_kernel
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/ashlar-vm.XXXXXX")
    trap clear_away EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir "$scratch/shared"
    make_initramfs
    write_job "$@"
    describe_machine "$mode"
    local bound=(timeout -k 10 "$limit")
    if [ "$mode" = shell ]; then
        bound=()
        stty raw -echo 2>/dev/null || true
        "${qemu[@]}" || status=$?
        stty sane 2>/dev/null || true
    else
        local tries=3
        while :; do
            # In the background, so that this script answers to signals; clear_away ends it.
            "${bound[@]}" "${qemu[@]}" </dev/null &
            machine=$!
            status=0
            wait $machine || status=$?
            machine=
            tries=$((tries - 1))
            # The emulator now and then breaks the kernel while that patches its own code, early when it boots. A job that has begun is never run again.
            [ $status = 0 ] && [ ! -e "$scratch/shared/begun" ] && [ $tries -gt 0 ] || break
            echo "vm: the machine stopped before the job began; it is started again. The end of its console:" >&2
            show_console 15
        done
    fi
    result=$(cat "$scratch/shared/status" 2>/dev/null || true)
    if [ $status = $ended_in_order ] && [[ $result =~ ^[0-9]+$ ]]; then
        [ "$result" = 0 ] || keep=yes
        [ "$result" = 0 ] || show_console 15
        exit "$result"
    fi
    keep=yes
    show_console 60
    case $status in
    124 | 137) die "the machine was still running after $limit seconds and was ended" ;;
    *) die "the machine did not end in order (qemu: $status, result of the job: ${result:-none})" ;;
    esac
}

show_console() {
    printf '%s\n' "--- the end of the guest's console, $scratch/console.log" >&2
    tail -n "$1" "$scratch/console.log" | tr -d '\r' >&2 || true
    echo '---' >&2
}

machine=
clear_away() {
    [ -z "$machine" ] || { kill "$machine" 2>/dev/null && wait "$machine" 2>/dev/null; } || true
    rm -f "$scratch"/*.img "$scratch/initramfs.cpio" "$scratch/modules"
    if [ $keep = yes ]; then
        echo "vm: console and shared folder are kept in $scratch" >&2
    else
        rm -rf --one-file-system "$scratch"
    fi
}

[ $# -gt 0 ] || { usage; exit 2; }
command=$1
shift
while [ $# -gt 0 ]; do
    case $1 in
    --limit | --test-limit | --memory | --kernel | --only)
        [ $# -gt 1 ] || die "$1 needs a value"
        case $1 in
        --limit) limit=$2 ;;
        --test-limit) test_limit=$2 ;;
        --memory) memory=$2 ;;
        --kernel) series=$2 ;;
        --only) only=$2 ;;
        esac
        shift 2
        ;;
    --keep) keep=yes; shift ;;
    --) shift; break ;;
    -h | --help) usage; exit 0 ;;
    -*) die "unknown option '$1'; see --help" ;;
    *) break ;;
    esac
done
[[ $limit =~ ^[1-9][0-9]*$ && $test_limit =~ ^[1-9][0-9]*$ ]] || die "limits are whole numbers of seconds"
case $command in
tests)
    [ $# = 1 ] || die "tests takes one test binary; see --help"
    [ -x "$1" ] || die "$1 is not an executable file"
    boot run "$here/vm/each-test.sh" "$(realpath "$1")" "$test_limit" "$only"
    ;;
run)
    [ $# -gt 0 ] || die "run takes a command; see --help"
    boot run "$@"
    ;;
service)
    [ $# -gt 0 ] || die "service takes a command; see --help"
    boot systemd "$@"
    ;;
shell) boot shell bash -i ;;
-h | --help | help) usage ;;
*) die "unknown command '$command'; see --help" ;;
esac
