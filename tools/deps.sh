#!/bin/sh
# Installs what is missing to build and test everything, from Debian's packages. Starts no service.
set -eu
needed='gcc g++ make pkg-config libclang-dev clang libclang-rt-dev php-cli php-dev php-fpm php-redis
  php-symfony-console phpunit redis-server libfcgi-bin openssl valgrind'

missing=
for package in $needed; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || {
  echo "Missing:$missing. This is not a Debian system; install their equivalents." >&2
  exit 1
}
sudo=
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "Missing:$missing. Run as root: apt-get install$missing" >&2; exit 1; }
  sudo=sudo
fi
# Packages of servers start them, unless this says no; it is put away again.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
  $sudo chmod 755 "$policy"
  trap '$sudo rm -f "$policy"' EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
fi
echo "Installing$missing"
log=$(mktemp)
if ! { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive \
  apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  rm -f "$log"
  exit 1
fi
rm -f "$log"
