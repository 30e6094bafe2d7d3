#!/bin/sh
# Installs Debian packages that some tests use and that pip cannot bring; does nothing where root or apt-get is missing.
# Usage: ops/install_debian.sh postgresql
set -eu
[ $# -gt 0 ] || { echo "usage: $0 <package>..." >&2; exit 2; }
missing=""
for package in "$@"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed:$missing (needs root and apt-get); the tests that use them are skipped" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 - one word a package
apt-get install -y -qq --no-install-recommends $missing >/dev/null
