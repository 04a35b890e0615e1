#!/bin/sh
# As `gleam export erlang-shipment` has it: "run" runs the program.
set -eu
PACKAGE=gleam_counter
BASE=$(cd "$(dirname "$0")" && pwd -P)
case ${1:-} in
run)
    shift
    exec erl -pa "$BASE"/*/ebin -eval "$PACKAGE@@main:run($PACKAGE)" -noshell -extra "$@"
    ;;
*)
    echo "usage: entrypoint.sh run [ARGUMENTS]" >&2
    exit 2
    ;;
esac
