#!/usr/bin/env bash
# Unpacks packages of another release of Debian below a folder. Nothing is installed, and the system's own package lists stay as they are.
#
#   scripts/unpack.sh SUITE FOLDER PACKAGE...           with everything they depend on
#   scripts/unpack.sh --alone SUITE FOLDER PATTERN...   by themselves: of the packages with names like each pattern (grep -E -x), the newest
set -euo pipefail

alone=no
[ "${1:-}" != --alone ] || { alone=yes; shift; }
[ $# -ge 3 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
suite=$1 folder=$2
shift 2

apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/{lists/partial,cache/archives/partial}
: >"$apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" >"$apt/sources"
options=(-q -o Dir::Etc::sourcelist="$apt/sources" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$apt/lists"
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
if [ $alone = yes ]; then
    for pattern in "$@"; do
        package=$(apt-cache "${options[@]}" pkgnames | grep -E -x "$pattern" | sort -V | tail -n 1)
        (cd "$apt/cache/archives" && apt-get "${options[@]}" download "$package")
    done
else
    apt-get "${options[@]}" -y --download-only --no-install-recommends install "$@"
fi
rm -rf "$folder.new"
for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$folder.new"; done
rm -rf "$folder"
mv "$folder.new" "$folder"
