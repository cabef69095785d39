#!/bin/sh
# The main job on real parts: PHP writes a tagged cache, the PHP console command cleans it.
# Uses REDIS_URL if it is set, under a prefix of its own; a private redis-server otherwise.
set -eu
cd "$(dirname "$0")/.."
extension=$PWD/target/release/libtagsweep_php.so
prefix="tagsweep-demo:$$:"
place=
server=

cleanup() {
  status=$?
  trap - EXIT INT TERM
  [ -z "${REDIS_URL:-}" ] || [ -n "$server" ] || php php/demo/fill.php clear "$prefix" || true
  [ -z "$server" ] || { kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; } || true
  [ -z "$place" ] || rm -rf "$place"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# All read it from the environment: arguments are shown to everybody.
if [ -z "${REDIS_URL:-}" ]; then
  # A socket's path must be short, so it is not below the checkout.
  place=$(mktemp -d)
  mkfifo "$place/log"
  redis-server --port 0 --unixsocket "$place/s" --dir "$place" --save '' >"$place/log" 2>&1 &
  server=$!
  grep -q -i 'ready to accept connections' "$place/log" || { echo 'redis-server does not start' >&2; exit 1; }
  cat "$place/log" >/dev/null &
  REDIS_URL="unix://$place/s"
fi
export REDIS_URL

echo '== A tagged cache, written through PHP (phpredis)'
php php/demo/fill.php write "$prefix"
echo
echo '== Before'
php php/demo/fill.php show "$prefix"
echo
echo '== php php/glue/bin/cache-tag-cleanup  (the tags are young: it waits for their grace of 2 s)'
php -d extension="$extension" php/glue/bin/cache-tag-cleanup --prefix "$prefix" --grace 2s --progress
echo
echo '== After'
php php/demo/fill.php show "$prefix"
