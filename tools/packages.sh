#!/bin/sh
# Unpacks what only tests need from Debian's packages into a private folder; nothing is installed:
# the frameworks that the bridges are tested against, promtool, and the servers of trixie, which run by
# their own loader and libraries: FOLDER/NAME-trixie/server. Prints nothing when all are there.
#   tools/packages.sh [FOLDER]      (default: target/packages; with NEXT=1 those of sid, too)
set -eu
cd "$(dirname "$0")/.."
folder=${1:-target/packages}

symfony='php-symfony-lock php-psr-log php-symfony-deprecation-contracts php-symfony-cache
  php-symfony-cache-contracts php-symfony-service-contracts php-symfony-var-exporter php-psr-cache'
laravel='php-illuminate-cache php-illuminate-contracts php-illuminate-support php-illuminate-collections
  php-illuminate-redis php-illuminate-macroable php-nesbot-carbon php-doctrine-inflector php-psr-simple-cache
  php-psr-container php-psr-log php-symfony-deprecation-contracts php-symfony-translation-contracts
  php-symfony-translation'

# fetch NAME SUITE PACKAGES…
fetch() {
  place=$folder/$1-$2
  [ "$(cat "$place/complete" 2>/dev/null)" = "$*" ] && return
  wanted=$*
  rm -rf "$place"
  mkdir -p "$place/debs" "$apt/lists/$2/partial" "$apt/cache/$2/archives/partial"
  config="-o Dir::Etc::SourceList=$apt/$2.list -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists=$apt/lists/$2 -o Dir::Cache=$apt/cache/$2 -o Dir::State::Status=/dev/null
    -o APT::Sandbox::User="
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $2 main" > "$apt/$2.list"
  name=$1 suite=$2
  shift 2
  # shellcheck disable=SC2086
  if ! apt-get $config update -q >"$apt/log" 2>&1; then
    cat "$apt/log" >&2
    echo "packages: the package lists of $suite cannot be fetched" >&2
    exit 1
  fi
  for package in "$@"; do
    # shellcheck disable=SC2086
    (cd "$place/debs" && apt-get $config download -q "$package" >>"$apt/log" 2>&1) || {
      tail -n 3 "$apt/log" >&2
      echo "packages: $package of $suite cannot be fetched" >&2
      exit 1
    }
  done
  for deb in "$place"/debs/*.deb; do
    dpkg-deb -x "$deb" "$place"
  done
  echo "unpacked $name of $suite: $(ls "$place/debs" | head -n 1)"
  rm -rf "$place/debs"
  echo "$wanted" > "$place/complete"
}

# Everything but the kernel: the dynamic loader of the suite and what its servers link to.
libraries='libc6 libgcc-s1 libatomic1 libjemalloc2 liblua5.1-0 liblzf1 libssl3t64 libzstd1 zlib1g
  libsystemd0 libcap2 libstdc++6'

# server NAME SUITE PROGRAM PACKAGES
server() {
  # shellcheck disable=SC2086
  fetch "$1" "$2" $4 $libraries
  place=$folder/$1-$2
  loader=$(find "$place" -name 'ld-linux-*.so.*' | head -n 1)
  paths=$(find "$place" -name '*.so*' ! -type d -exec dirname {} + | sort -u | paste -s -d : -)
  {
    echo '#!/bin/sh'
    echo "exec '$loader' --library-path '$paths' '$place/usr/bin/$3' \"\$@\""
  } > "$place/server"
  chmod 755 "$place/server"
  "$place/server" --version
}

mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
  sed -n -e 's/^URIs: *\([^ ]*\).*/\1/p' -e 's/^deb \(\[[^]]*\] \)*\([^ ]*\).*/\2/p' |
  grep '/debian/*$' | head -n 1)
[ -n "$mirror" ] || { echo 'packages: this machine names no Debian mirror' >&2; exit 1; }
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT INT TERM
# shellcheck disable=SC2086
{
  fetch symfony bookworm $symfony
  fetch symfony trixie $symfony
  fetch laravel bookworm $laravel
  fetch laravel trixie $laravel php-illuminate-conditionable
  fetch prometheus bookworm prometheus
  server redis trixie redis-server "redis-server redis-tools"
  server valkey trixie valkey-server "valkey-server valkey-tools"
  if [ -n "${NEXT:-}" ]; then
    server redis sid redis-server "redis-server redis-tools"
    server valkey sid valkey-server "valkey-server valkey-tools"
  fi
}
