#!/usr/bin/env bash
# Installs what building, testing and the laboratory need on Debian 12 or later.
#
#   scripts/setup.sh             install what is missing (as root, or through sudo)
#   scripts/setup.sh --check     change nothing; say what is missing; exit 1 if anything is
#   scripts/setup.sh --nextest   also install cargo-nextest (otherwise the tests run under cargo test)
#   scripts/setup.sh --nas       also what NAS servers need: NFS-Ganesha 5 or later, and what it needs; clients for the tests
#   scripts/setup.sh --suites    also fsx and pjdfstest, which exercise file systems (builds them)
#   scripts/setup.sh --fuzz      also what building the fuzzers needs
#   scripts/setup.sh --package   also what making and testing the Debian package needs, and a small Debian to install it into
#   scripts/setup.sh --vm        also what tests on a real kernel need: qemu, fsx, and Debian's kernel 6.12 unpacked beside the system
#   scripts/setup.sh --vm-newest the same, and the newest kernel that Debian has (in the backports of its stable release)
#
# Run it as often as you like: with everything in place it only looks, and takes well under a second.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# What must be there, and the Debian package that brings it. Left: a command, or a path when it starts with "/".
needs=(
    cc:gcc
    # The ublk front end's bindings are made from the kernel's header.
    /usr/share/doc/libclang-dev:libclang-dev
    make:make
    pkg-config:pkg-config
    /usr/include/stdio.h:libc6-dev
    /etc/ssl/certs/ca-certificates.crt:ca-certificates
    curl:curl
    git:git
    python3:python3
    jq:jq
    openssl:openssl
    fio:fio
    nbdinfo:libnbd-bin
    nbdcopy:libnbd-bin
    nbdkit:nbdkit
    qemu-img:qemu-utils
    qemu-io:qemu-utils
    qemu-nbd:qemu-utils
    mkfs.ext4:e2fsprogs
    mkfs.xfs:xfsprogs
    mkfs.btrfs:btrfs-progs
    fusermount3:fuse3
    /bin/kill:procps
    mount:mount
    losetup:mount
    blkdiscard:util-linux
    setsid:util-linux
    setfacl:acl
)

# The same for `scripts/vm.sh` and the tests that run in it.
needs_vm=(
    qemu-system-x86_64:qemu-system-x86
    /usr/share/doc/busybox-static:busybox-static
    cpio:cpio
    xz:xz-utils
    modprobe:kmod
    udevadm:udev
    nbd-client:nbd-client
    lvm:lvm2
)
# The same for NAS servers.
needs_nas=(
    ip:iproute2
    rpcbind:rpcbind
    rpc.statd:nfs-common
    nfs-cp:libnfs-utils
)
needs_ganesha=(nfs-ganesha nfs-ganesha-vfs)
# The same for `scripts/package.sh` and `scripts/test-package.sh`.
needs_package=(
    dpkg-shlibdeps:dpkg-dev
    strip:binutils
    mmdebstrap:mmdebstrap
    unshare:util-linux
)
# A small Debian of this machine's release, as it is before the package is installed.
package_root=/var/cache/ashlar-package/root.tar
# Where the kernel is unpacked. It is not installed as a package: that would make it the one this machine boots next.
vm_kernel=/var/cache/ashlar-vm

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

check_only=no
want_nextest=no
want_vm=no
want_newest=no
want_package=no
want_suites=no
want_nas=no
for arg in "$@"; do
    case $arg in
    --check) check_only=yes ;;
    --nextest) want_nextest=yes ;;
    --vm) want_vm=yes ;;
    --vm-newest) want_vm=yes want_newest=yes ;;
    --fuzz) needs+=(c++:g++) ;;
    --package) want_package=yes ;;
    --suites) want_suites=yes ;;
    --nas) want_nas=yes ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option '$arg'; see --help" ;;
    esac
done

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "'$*' needs root, and there is no sudo: run scripts/setup.sh once as root"
    fi
}

apt_install() {
    command -v apt-get >/dev/null || die "no apt-get here; install the counterparts of these Debian packages by hand: $*"
    say "installing from Debian: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

missing_packages() {
    local need what
    for need in "${needs[@]}"; do
        what=${need%:*}
        case $what in
        /*) [ -e "$what" ] || echo "${need##*:}" ;;
        *) command -v "$what" >/dev/null || echo "${need##*:}" ;;
        esac
    done | sort -u
}

# The least Rust the workspace accepts, from Cargo.toml.
rust_wanted() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml"; }

# Version of cargo as Cargo.toml's directory sees it (a rustup proxy without a toolchain answers nothing).
cargo_version() { (cd "$root" && cargo --version 2>/dev/null || true) | awk '{print $2}'; }

# Whether version $1 is at least $2.
at_least() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# Rust installed by rustup for the calling user is often not on the path of a non-interactive shell.
find_cargo() {
    local home=$HOME
    [ "$(id -u)" != 0 ] || [ -z "${SUDO_USER:-}" ] || home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    local dir
    for dir in "${CARGO_HOME:-$HOME/.cargo}/bin" "$home/.cargo/bin"; do
        case ":$PATH:" in *":$dir:"*) ;; *) [ ! -x "$dir/cargo" ] || export PATH="$dir:$PATH" ;; esac
    done
}

rust_help() {
    local wanted have
    wanted=$(rust_wanted)
    have=$(cargo_version)
    cat >&2 <<MSG
setup: Rust $wanted or later is needed; found: ${have:-none}.
setup: Debian $(. /etc/os-release 2>/dev/null && echo "${VERSION_ID:-}") has no recent Rust. Install it for your user with the official installer, then start again:

    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
    . "\$HOME/.cargo/env"

MSG
    exit 1
}

setup_rust() {
    local wanted
    wanted=$(rust_wanted)
    find_cargo
    if ! at_least "$(cargo_version)" "$wanted"; then
        [ $check_only = no ] || rust_help
        if ! command -v rustup >/dev/null && apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
            apt_install rustup
        fi
        command -v rustup >/dev/null || rust_help
        say "installing the stable Rust toolchain by rustup"
        rustup toolchain install stable --profile minimal -c rustfmt -c clippy
        rustup default >/dev/null 2>&1 || rustup default stable
        at_least "$(cargo_version)" "$wanted" || rust_help
    fi
    if ! (cd "$root" && cargo fmt --version && cargo clippy --version) >/dev/null 2>&1; then
        [ $check_only = no ] || die "rustfmt or clippy is missing: rustup component add rustfmt clippy"
        command -v rustup >/dev/null || die "rustfmt or clippy is missing, and this Rust is not managed by rustup: install them beside cargo"
        (cd "$root" && rustup component add rustfmt clippy)
    fi
}

# Debian's newest kernel 6.12: the first series that has everything the tests need, from Debian 12's own archive.
setup_vm_kernel() {
    local package dir
    ! compgen -G "$vm_kernel/boot/vmlinuz-6.12.*-amd64" >/dev/null || return 0
    [ $check_only = no ] || die "the kernel for tests in a virtual machine is missing below $vm_kernel"
    newest() { apt-cache pkgnames linux-image-6.12. | grep -E '^linux-image-6\.12\.[0-9]+[^-]*-amd64$' | sort -V | tail -n 1; }
    package=$(newest) || true
    if [ -z "$package" ]; then
        as_root apt-get update -q
        package=$(newest) || die "this Debian's archive has no linux-image-6.12.*-amd64"
    fi
    say "unpacking $package below $vm_kernel"
    dir=$(mktemp -d)
    (cd "$dir" && apt-get download -q "$package" || { as_root apt-get update -q && apt-get download -q "$package"; })
    dpkg-deb -x "$dir"/linux-image-*.deb "$dir/root"
    keep_kernel "$dir/root"
    rm -rf "$dir"
}

# Takes over an unpacked kernel. Its image last, since that is what is looked for; newer packages have it beside the modules.
keep_kernel() {
    local image release
    mkdir -p "$1/boot"
    for image in "$1"/usr/lib/modules/*/vmlinuz; do
        release=${image%/vmlinuz}
        [ ! -f "$image" ] || mv "$image" "$1/boot/vmlinuz-${release##*/}"
    done
    for image in "$1"/boot/vmlinuz-*; do
        release=${image##*/vmlinuz-}
        [ -d "$1/lib" ] || ln -s usr/lib "$1/lib"
        depmod -b "$1" "$release"
        as_root mkdir -p "$vm_kernel/boot" "$vm_kernel/lib/modules"
        as_root cp -r --no-preserve=ownership "$1/lib/modules/$release" "$vm_kernel/lib/modules/"
        as_root cp --no-preserve=ownership "$image" "$vm_kernel/boot/.new"
        as_root chmod -R a+rX "$vm_kernel"
        as_root mv "$vm_kernel/boot/.new" "$vm_kernel/boot/${image##*/}"
    done
}

# Debian 12's archive has no kernel as new as some of what ublk can.
setup_newest_kernel() {
    local dir
    ! compgen -G "$vm_kernel/boot/vmlinuz-[!6]*-amd64" >/dev/null || return 0
    [ $check_only = no ] || die "the newest kernel for tests in a virtual machine is missing below $vm_kernel"
    say "unpacking Debian's newest kernel below $vm_kernel"
    dir=$(mktemp -d)
    "$root/scripts/unpack.sh" --alone trixie-backports "$dir/root" linux-{binary,modules}-'[0-9.]+\+deb[0-9]+-amd64'
    keep_kernel "$dir/root"
    rm -rf "$dir"
}

# Debian has neither fsx nor this pjdfstest. Where every user finds them, and the guest, which sees this machine's files.
setup_suite() {
    local name=$1 version=$2 dir
    ! command -v "$name" >/dev/null || return 0
    [ $check_only = no ] || die "$name is missing"
    say "installing $name (builds it; about a minute)"
    dir=$(mktemp -d)
    cargo install --quiet --locked --debug --root "$dir" "$name@$version"
    as_root install -m 755 "$dir/bin/$name" "/usr/local/bin/$name"
    rm -rf "$dir"
}

# Whether Ganesha is there, in a version whose configuration the daemon writes.
has_ganesha() {
    local version
    version=$(ganesha.nfsd -v 2>/dev/null | sed -n 's/.*V\([0-9][0-9.]*\).*/\1/p')
    at_least "$version" 5 && compgen -G "/usr/lib/*/ganesha/libfsalvfs.so" >/dev/null
}

# Debian 12 itself has Ganesha 4; its backports have 5. The system's own Ganesha is not to serve anything.
setup_ganesha() {
    ! has_ganesha || return 0
    [ $check_only = no ] || die "NFS-Ganesha 5 or later is missing: ${needs_ganesha[*]}"
    local from=() policy=/usr/sbin/policy-rc.d release
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$release" = bookworm ]; then
        from=(-t bookworm-backports)
        if ! apt-cache policy 2>/dev/null | grep -q bookworm-backports; then
            say "adding Debian's backports to the sources of packages: /etc/apt/sources.list.d/ashlar-backports.sources"
            printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' 'Suites: bookworm-backports' 'Components: main' \
                'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' |
                as_root tee /etc/apt/sources.list.d/ashlar-backports.sources >/dev/null
        fi
    fi
    if [ -e $policy ]; then policy=; else
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    local status=0
    apt_install "${from[@]}" "${needs_ganesha[@]}" || status=$?
    [ -z "$policy" ] || as_root rm -f "$policy"
    [ $status = 0 ] || exit $status
    ! command -v systemctl >/dev/null || as_root systemctl disable nfs-ganesha >/dev/null 2>&1 || true
    has_ganesha || die "NFS-Ganesha 5 or later is still missing after installation"
}

setup_package_root() {
    [ ! -e "$package_root" ] || return 0
    [ $check_only = no ] || die "$package_root, the Debian that the package is tested in, is missing"
    say "making $package_root: a small Debian to install the package into"
    as_root mkdir -p "${package_root%/*}"
    as_root mmdebstrap --quiet --mode=root --variant=minbase --format=tar --include=systemd,udev,kmod \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$package_root.new"
    as_root mv "$package_root.new" "$package_root"
}

[ $want_vm = no ] || needs+=("${needs_vm[@]}")
[ $want_package = no ] || needs+=("${needs_package[@]}")
[ $want_nas = no ] || needs+=("${needs_nas[@]}")
mapfile -t packages < <(missing_packages)
if [ ${#packages[@]} -gt 0 ]; then
    [ $check_only = no ] || die "missing Debian packages: ${packages[*]}"
    apt_install "${packages[@]}"
    mapfile -t packages < <(missing_packages)
    # Packages of one source in two versions exclude each other: what was removed for the new ones comes back in their version.
    [ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} = 0 ] || die "still missing after installation: ${packages[*]}"
fi
[ $want_nas = no ] || setup_ganesha
[ $want_vm = no ] || setup_vm_kernel
[ $want_newest = no ] || setup_newest_kernel
[ $want_package = no ] || setup_package_root
setup_rust
[ $want_vm$want_suites = nono ] || setup_suite fsx 0.3.2
[ $want_suites = no ] || setup_suite pjdfstest 0.2.2
if [ $want_nextest = yes ] && ! cargo nextest --version >/dev/null 2>&1; then
    [ $check_only = no ] || die "cargo-nextest is missing"
    say "installing cargo-nextest (builds it; a few minutes)"
    cargo install --locked cargo-nextest
fi
say "everything is there: $(cd "$root" && cargo --version | cut -d' ' -f1,2), $(fio --version), $(cc --version | head -n 1)"
