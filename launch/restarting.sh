#!/bin/bash
# restarting COMMAND...: runs it, and again whenever it ended in a way that a restart mends
#
# Again after 75 (another host is gone, or a bucket does not answer), 134 and 139 (a crash in native code) and 137 (killed, as for want of
# memory): at most RESTARTS (100) times, after RESTART_PAUSE (10) seconds. Not after 0, 1 (an error that a person must see to), 2 (a wrong
# command line) and after a signal, which it passes on: 143, 130. It is what a container runs; its exit code is that of the last try.
set -u
stopped='' child=''
stop() {
  stopped=$1
  if [ -n "$child" ]; then kill "-$1" "$child" 2>/dev/null; fi
}
trap 'stop TERM' TERM
trap 'stop INT' INT
for ((try = 0; ; try++)); do
  "$@" &
  child=$!
  [ -z "$stopped" ] || kill "-$stopped" "$child"  # it came before there was a number to send it to
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do  # it was a signal that ended `wait`
    wait "$child"
    code=$?
  done
  case "$stopped:$code" in
    :75 | :134 | :137 | :139) ;;
    *) exit "$code" ;;
  esac
  [ "$try" -lt "${RESTARTS:-100}" ] || exit "$code"
  echo "restarting: exit code $code, try $((try + 1)) of ${RESTARTS:-100}" >&2
  sleep "${RESTART_PAUSE:-10}" &
  wait $!
  [ -z "$stopped" ] || exit 143
done
