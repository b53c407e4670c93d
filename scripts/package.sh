#!/usr/bin/env bash
# Makes the Debian package of a built ashlar command.
#
#   scripts/package.sh [--binary FILE] [--version VERSION] [--quick] [DIR]
#
# FILE: target/release/ashlar (`make build`) unless told otherwise. VERSION: what the binary says. The package goes to DIR (target/package) as
# ashlar_VERSION_ARCHITECTURE.deb, whose path is the only thing printed to standard output. --quick compresses little, for tests. Needs what
# scripts/setup.sh installs; runs as any user. The same binary and SOURCE_DATE_EPOCH give the same package.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source=$root/tools/package
target=${CARGO_TARGET_DIR:-$root/target}

die() { printf 'package: %s\n' "$*" >&2; exit 1; }

binary=$target/release/ashlar
version=
compression=(-Zxz)
out=$target/package
while [ $# -gt 0 ]; do
    case $1 in
    --binary | --version)
        [ $# -gt 1 ] || die "$1 needs a value"
        case $1 in
        --binary) binary=$2 ;;
        --version) version=$2 ;;
        esac
        shift 2
        ;;
    --quick) compression=(-Zgzip -z1); shift ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) die "unknown option '$1'; see --help" ;;
    *) out=$1; shift ;;
    esac
done
[ -x "$binary" ] || die "there is no program $binary: make build"
said=$("$binary" --version) || die "$binary does not run here"
[ -n "$version" ] || version=${said#ashlar }
[[ $version =~ ^[0-9][A-Za-z0-9.+~]*$ ]] || die "'$version' is no version of a native Debian package"
architecture=$(dpkg --print-architecture)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}

work=$(mktemp -d "${TMPDIR:-/tmp}/ashlar-package.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
umask 022

file() { install -D -m "$1" "$2" "$tree$3"; }
file 755 "$binary" /usr/bin/ashlar
strip --strip-unneeded -R .comment -R .note "$tree/usr/bin/ashlar"
file 644 "$source/ashlar.service" /usr/lib/systemd/system/ashlar.service
file 644 "$source/90-ashlar.rules" /usr/lib/udev/rules.d/90-ashlar.rules
file 644 "$source/tmpfiles.conf" /usr/lib/tmpfiles.d/ashlar.conf
file 755 "$source/name-of" /usr/lib/ashlar/name-of
file 755 "$source/unmount-at-shutdown" /usr/lib/ashlar/unmount-at-shutdown
file 644 "$source/ashlar.toml" /etc/ashlar/ashlar.toml
file 644 "$source/ashlar.8" /usr/share/man/man8/ashlar.8
file 644 "$source/debian/copyright" /usr/share/doc/ashlar/copyright
completions() {
    mkdir -p "$tree${2%/*}"
    "$binary" completions "$1" >"$tree$2"
}
completions bash /usr/share/bash-completion/completions/ashlar
completions zsh /usr/share/zsh/vendor-completions/_ashlar
completions fish /usr/share/fish/vendor_completions.d/ashlar.fish
cat >"$tree/usr/share/doc/ashlar/changelog" <<CHANGES
ashlar ($version) unstable; urgency=medium

  * Release $version. What changed is told in CHANGELOG.md of the sources.

 -- $(sed -n 's/^Maintainer: //p' "$source/debian/control.in")  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
CHANGES
gzip -9n "$tree/usr/share/doc/ashlar/changelog" "$tree/usr/share/man/man8/ashlar.8"

# The packages that bring the libraries it is linked to.
mkdir -p "$work/debian"
printf 'Source: ashlar\n\nPackage: ashlar\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O -e"$tree/usr/bin/ashlar" 2>/dev/null) || die "dpkg-shlibdeps finds no packages for the libraries of $binary"
depends=${depends#shlibs:Depends=}

mkdir -p "$tree/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@DEPENDS@/$depends/" \
    -e "s/@SIZE@/$(du -sk --apparent-size "$tree" | cut -f1)/" "$source/debian/control.in" >"$tree/DEBIAN/control"
echo /etc/ashlar/ashlar.toml >"$tree/DEBIAN/conffiles"
for script in postinst prerm postrm; do file 755 "$source/debian/$script" "/DEBIAN/$script"; done
(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum >DEBIAN/md5sums)
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$out"
package=$out/ashlar_${version}_$architecture.deb
dpkg-deb --root-owner-group "${compression[@]}" --build "$tree" "$package" >/dev/null
echo "$package"
