#!/bin/sh
# Writes .env from .env.example with a fresh secret wherever that is empty; never touches one that exists.
# Usage: sh deploy/new-env.sh [target], from anywhere; default: .env beside docker-compose.yml
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/.env}
[ ! -e "$target" ] || { echo "error: $target exists; its secrets are in use. Delete it only together with the volumes" >&2; exit 2; }
hex() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
revision=$(git -C "$root" rev-parse HEAD 2>/dev/null || true)
while IFS= read -r line || [ -n "$line" ]; do
  case "$line" in
    AIRFLOW_FERNET_KEY=) line=$line$(head -c 32 /dev/urandom | base64 | tr '+/' '-_') ;;
    REVISION=) line=$line$revision ;;
    \#* | *=?* | "") ;;
    *=) line=$line$(hex) ;;
  esac
  printf '%s\n' "$line"
done <"$root/.env.example" >"$target.new"
mv "$target.new" "$target"
echo "wrote $target; only you can read it"
