#!/bin/sh
# Side by side in one run on the same data: the PHP design's loop, the same loop pipelined, and ours.
#   benches/peers/run.sh [TAGS] [ROUNDS]
set -eu
cd "$(dirname "$0")/../.."
exec php -d extension="$PWD/target/release/libtagsweep_php.so" benches/peers/side_by_side.php "${1:-20000}" "${2:-3}"
