# shellcheck shell=bash
# Shared by the scripts of launch/: options, --dry_run, running and retrying commands. Sourced, not run.
#
# A script declares its options, then parses:
#
#   option name    required fuse-1     "the run's name"             --name=fuse-1, no default: the third word is an example
#   option mount   default  /mnt/share "where the share appears"    --mount=/data, or the third word
#   option network optional my-network "VPC network"            --network=..., or empty; an example
#   option spot    switch   ""         "cheaper, may be preempted"  --spot
#   option sbatch  repeated "--mem=0"  "passed to sbatch"           --sbatch=--mem=0 --sbatch=--exclusive, into ${sbatch[@]}
#   parse_options "$@"
#
# Then $name, $mount, $spot (1 or empty) hold the values, and `rest` the words after `--`.

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  echo "error: launch/ needs bash 4.4 or newer, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

USER_ERROR=2 # zipper's exit status for errors that a restart would repeat
script_name=$(basename "$0")
option_names=()
declare -A option_kind=() option_value=() option_help=()
rest=()
dry_run=""

fail() { # fail MESSAGE...: a user's error
  printf 'error: %s\n' "$*" >&2
  exit "$USER_ERROR"
}

say() { printf '== %s\n' "$*" >&2; }

option() { # option NAME required|optional|default|switch|repeated EXAMPLE_OR_DEFAULT HELP
  option_names+=("$1")
  option_kind[$1]=$2 option_value[$1]=$3 option_help[$1]=$4
  case $2 in
    default) printf -v "$1" '%s' "$3" ;;
    repeated) declare -ga "$1=()" ;;
    *) printf -v "$1" '%s' "" ;;
  esac
}

print_help() { # the script's first comment, then its options
  awk 'NR > 1 { if (!/^#/ || /^# shellcheck/) exit; sub(/^# ?/, ""); print }' "$0"
  echo
  echo "options:"
  local key left
  for key in "${option_names[@]}"; do
    left="--$key"
    [ "${option_kind[$key]}" = switch ] || left+="=${option_value[$key]}"
    ((${#left} < 42)) || left+=$'\n'"$(printf '%44s' "")"
    case ${option_kind[$key]} in
      required) printf '  %-42s %s\n' "$left" "${option_help[$key]} (required)" ;;
      default) printf '  %-42s %s\n' "$left" "${option_help[$key]} (default)" ;;
      repeated) printf '  %-42s %s\n' "$left" "${option_help[$key]} (may be repeated)" ;;
      *) printf '  %-42s %s\n' "$left" "${option_help[$key]}" ;;
    esac
  done
  printf '  %-42s %s\n' "--dry_run" "print every command, quoted for the shell, and run none"
  printf '  %-42s %s\n' "--help" "print this help"
}

# Locals start with _ so that they do not shadow the variables named after options.
parse_options() { # parse_options "$@"
  local _word _key _value
  while (($#)); do
    _word=$1
    shift
    case $_word in
      --)
        rest=("$@")
        return
        ;;
      -h | --help)
        print_help
        exit 0
        ;;
      --dry_run)
        dry_run=1
        continue
        ;;
      --?*) ;;
      *) fail "$script_name: $_word: options start with --, and the command to run follows -- (see --help)" ;;
    esac
    _key=${_word%%=*}
    _key=${_key#--}
    [ -n "${option_kind[$_key]:-}" ] || fail "$script_name has no option --$_key (it has: $(list_options))"
    if [ "${option_kind[$_key]}" = switch ]; then
      [ "$_word" = "--$_key" ] || fail "--$_key takes no value: write --$_key"
      printf -v "$_key" 1
      continue
    fi
    if [[ $_word == *=* ]]; then
      _value=${_word#*=}
    else
      if (($# == 0)) || [ "$1" = -- ]; then
        fail "--$_key needs a value, for example --$_key=${option_value[$_key]}"
      fi
      _value=$1
      shift
    fi
    [ -n "$_value" ] || fail "--$_key= is empty, for example --$_key=${option_value[$_key]}"
    if [ "${option_kind[$_key]}" = repeated ]; then
      local -n _list=$_key
      _list+=("$_value")
    else
      printf -v "$_key" '%s' "$_value"
    fi
  done
}

list_options() {
  local names
  printf -v names -- '--%s ' "${option_names[@]}"
  printf '%s' "$names--dry_run --help"
}

require() { # require NAME...: fails with the list of all missing options
  local _key _missing=()
  for _key in "$@"; do
    [ -n "${!_key}" ] || _missing+=("--$_key (for example --$_key=${option_value[$_key]}: ${option_help[$_key]})")
  done
  ((${#_missing[@]} == 0)) && return
  printf 'error: %s needs %s\n' "$script_name" "${_missing[0]}" >&2
  ((${#_missing[@]} == 1)) || printf '       and %s\n' "${_missing[@]:1}" >&2
  exit "$USER_ERROR"
}

number() { # number NAME LEAST...: each is a whole number of at least LEAST
  while (($#)); do
    if [[ ! ${!1} =~ ^[0-9]+$ ]] || ((${!1} < $2)); then
      fail "--$1=${!1}: give a whole number of at least $2"
    fi
    shift 2
  done
}

# train_command [FOLDER]: checks `-- train ...`, and sets model_dir. With FOLDER the run folder must be inside it or in a
# bucket: only shared storage survives the loss of a host.
train_command() {
  local word gin=""
  model_dir=""
  [ "${rest[0]:-}" = train ] ||
    fail "$script_name: give the command after --: -- train --gin_file=runs/fuse.gin --gin.MODEL_DIR=FOLDER ..."
  for word in "${rest[@]:1}"; do
    case $word in
      --gin_file | --gin_file=?*) gin=1 ;;
      --gin.MODEL_DIR=*) model_dir=${word#*=} ;;
      --coordinator* | --process_count* | --process_index*) fail "$script_name sets ${word%%=*} itself: remove it" ;;
    esac
  done
  [ -n "$gin" ] || fail "the train command needs --gin_file=..., for example --gin_file=runs/fuse.gin"
  model_dir=${model_dir//[\"\']/}
  [ -n "$model_dir" ] || fail "the train command needs --gin.MODEL_DIR=FOLDER: a restart resumes from it"
  [[ $model_dir != *://* || $model_dir == gs://?*/?* ]] ||
    fail "--gin.MODEL_DIR=$model_dir: of URLs only gs://BUCKET/FOLDER can be a run folder"
  [ -z "${1:-}" ] || [[ $model_dir == gs://* || $model_dir == "${1%/}"/* ]] ||
    fail "--gin.MODEL_DIR=$model_dir: give gs://BUCKET/FOLDER, or a folder in $1, which all hosts share"
}

# prepare_command: checks `-- data prepare ...` of the scripts that run it in shards.
prepare_command() {
  local word out="" corpus=""
  [ "${rest[0]:-} ${rest[1]:-}" = "data prepare" ] ||
    fail "$script_name: give the command after --: -- data prepare --corpus=FOLDER --out=FOLDER ..."
  for word in "${rest[@]:2}"; do
    case $word in
      --out | --out=?*) out=1 ;;
      --corpus | --corpus=?*) corpus=1 ;;
      --fit | --finish | --shard | --shard=* | --workers | --workers=* | --processes | --processes=*)
        fail "$script_name sets ${word%%=*} itself: remove it" ;;
      --overwrite) # shards refuse it, after --fit has started over
        fail "$script_name: --overwrite: run the command once by itself with --fit --overwrite, and omit it here" ;;
    esac
  done
  [ -n "$corpus" ] && [ -n "$out" ] || fail "the command needs --corpus=FOLDER and --out=FOLDER"
}

quoted() { # quoted WORD...: as one line that the shell reads back as these words
  local word line="" head
  for word in "$@"; do
    head=""
    if [[ $word =~ ^(--[A-Za-z_.-]+=)(.*)$ ]]; then
      head=${BASH_REMATCH[1]} word=${BASH_REMATCH[2]}
    fi
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ || (-n $head && -z $word) ]] || word=${word@Q}
    line+="$head$word "
  done
  printf '%s' "${line% }"
}

note() { # note TEXT: in a dry run, a comment among the commands
  [ -z "$dry_run" ] || printf '# %s\n' "$*"
}

run() { # run COMMAND...: prints it (unless quiet is set) and runs it; in a dry run only prints it
  if [ -n "$dry_run" ]; then
    quoted "$@"
    echo
    return 0
  fi
  [ -n "${quiet:-}" ] || printf '+ %s\n' "$(quoted "$@")" >&2
  "$@"
}

# retry_until_done TIMES COMMAND...: repeats it until it ends with 0 or 2 (an error that a restart would repeat), until
# stop_asked is set (by the script's signal handler), or for TIMES restarts. An attempt that ends within retry_quick
# seconds did no work: the pause before the next one doubles, from retry_pause up to retry_longest.
# Returns the last status.
retry_until_done() {
  local times=$1 status=0 count=0 pause=${retry_pause:-5} began
  shift
  while :; do
    began=$SECONDS
    status=0
    "$@" || status=$?
    if ((status == 0 || status == 2)) || [ -n "${stop_asked:-}" ]; then
      return "$status"
    fi
    if ((count >= times)); then
      echo "== ended with status $status after $times restarts: giving up" >&2
      return "$status"
    fi
    count=$((count + 1))
    ((SECONDS - began < ${retry_quick:-60})) || pause=${retry_pause:-5}
    echo "== ended with status $status: restarting ($count of $times) in $pause s" >&2
    sleep "$pause"
    [ -z "${stop_asked:-}" ] || return "$status" # asked during the pause
    pause=$((pause * 2 > ${retry_longest:-300} ? ${retry_longest:-300} : pause * 2))
  done
}
