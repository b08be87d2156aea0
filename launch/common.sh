# Sourced by the scripts of this folder: options, and commands that are printed before they run (or, with --dry_run, instead).
set -euo pipefail

# show COMMAND...: as one line that a shell would read back as the same words
show() { local line; printf -v line '%q ' "$@"; printf '+ %s\n' "${line% }"; }

# run COMMAND...
run() {
  show "$@"
  if [ -z "${DRY_RUN:-}" ]; then "$@"; fi
}

# quote WORD...: one string for a remote shell
quote() { local line; printf -v line '%q ' "$@"; printf '%s' "${line% }"; }

fail() { printf '%s: %s\n' "$(basename "$0")" "$1" >&2; exit 2; }

# usage: the comment at the head of the script
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

# read_options NAME... -- ARGUMENT...: sets each --name VALUE, --dry_run, and REST: all that follows `--`
read_options() {
  local known_=" " option_
  while [ "$1" != -- ]; do known_+="$1 "; shift; done
  shift
  REST=()
  while [ $# -gt 0 ]; do
    case "$1" in
      -h|--help) usage; exit 0 ;;
      --dry_run) DRY_RUN=1; shift ;;
      --spot) SPOT=1; shift ;;
      --) shift; REST=("$@"); return ;;
      --*)
        option_="${1#--}"
        [[ "$known_" == *" $option_ "* ]] || fail "there is no option --$option_; options:${known_}spot dry_run"
        [ $# -ge 2 ] || fail "--$option_ needs a value"
        printf -v "$option_" '%s' "$2"
        shift 2 ;;
      *) fail "unexpected argument '$1'; what vpp is to do comes after --" ;;
    esac
  done
}

# need NAME...: options without which the command makes no sense
need() { local option_; for option_ in "$@"; do [ -n "${!option_:-}" ] || fail "--$option_ is missing (--help explains)"; done; }
