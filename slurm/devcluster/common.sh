# shellcheck shell=bash
# What devcluster and filesystems share: settings, a root directory of their own, and processes that they know again.
# They set: program (its name in messages), why (the command that shows logs), marker, root, and arguments.
# shellcheck disable=SC2154,SC2034
set -uo pipefail; shopt -s nullglob
LC_ALL=C                     # elsewhere EPOCHREALTIME may have a comma
PATH=$PATH:/usr/sbin:/sbin   # where the daemons are; a user's PATH often lacks it

user=$(id -un) self=$(readlink -f "$0")

say() { echo "$program: $*" >&2; }
die() { say "$*"; exit 1; }
setting() { # NAME DEFAULT PATTERN EXPECTED EXAMPLE
  local name=DEVCLUSTER_$1 value; value=${!name:-$2}
  [[ $value =~ ^($3)$ ]] || die "$name=$value does not work; expected $4. Type: export $name=$5"
  echo "$value"
}

# --- the root ---------------------------------------------------------------------------------------------------------
ours() { [ -f "$root/$marker" ] && [ -O "$root" ]; }
make_root() { # SETTING
  mkdir -p "$root" || die "cannot make $root. Type: export $1=<a path that you may write>"
  [ -z "$(ls -A "$root")" ] || [ -e "$root/$marker" ] ||
    die "$root holds files that $program did not make. Type: export $1=<a new path>"
  touch "$root/$marker"
  ours || die "$root belongs to someone else. Type: export $1=<a new path>"
}
lock() { # one start, stop, crash, ... at a time
  exec 9>>"$root/lock"
  flock -n 9 || { say "waiting for another $program that is at work in $root"; flock 9; }
  [ "$root/lock" -ef /proc/self/fd/9 ] || exec "$self" "${arguments[@]}"   # `clean` took it away: begin again
}

# --- processes: noted as "pid starttime", so that a pid given to someone else is never taken for ours -----------------
start_time() { # PID: nothing for a dead one; a zombie is dead, although kill -0 finds it until its parent reaps it
  local fields
  read -r fields 2>/dev/null <"/proc/$1/stat" || return
  read -ra fields <<<"${fields##*) }"
  [ "${fields[0]}" = Z ] || echo "${fields[19]}"
}
runs() { # NAME: sets pid
  local started
  read -r pid started 2>/dev/null <"$root/pid/$1" && [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ]
}
note() { echo "$2 $(start_time "$2")" >"$root/pid/$1"; }   # NAME PID
spawn() { # NAME COMMAND...
  local name=$1; shift
  setsid "$@" </dev/null >>"$root/log/$name.out" 2>&1 9>&- &   # 9>&-: a daemon would hold the lock for ever
  note "$name" $!
  disown                                                       # or bash reports its end
}
end() { # NAME SIGNAL: waits until it has ended
  local tries
  runs "$1" && kill -"$2" "$pid"
  for ((tries = 0; tries < 300; tries++)); do runs "$1" || break; sleep 0.05; done
  if runs "$1"; then say "$1 still runs after 15 s: killing it"; kill -KILL "$pid"; fi
  rm -f "$root/pid/$1"
}
wait_for() { # SECONDS NAME COMMAND...: until COMMAND succeeds
  local seconds=$1 name=$2 tries; shift 2
  for ((tries = 0; tries < seconds * 20; tries++)); do
    "$@" >/dev/null 2>&1 && return
    runs "$name" || die "$name ended, and should run. To see why, type: $why"
    sleep 0.05
  done
  die "$name was not ready after $seconds s. To see why, type: $why"
}
guard() { # PID: stops everything when that process has ended
  local started; started=$(start_time "$1")
  while [ -n "$started" ] && [ "$(start_time "$1")" = "$started" ]; do sleep 1; done
  rm -f "$root/pid/guard"; stop
}

# --- Debian packages --------------------------------------------------------------------------------------------------
apt_install() { # PACKAGE...: without starting the daemons that they bring
  local policy=/usr/sbin/policy-rc.d failed=0
  [ "$(id -u)" = 0 ] || die "installing needs root. Type: sudo $self install"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  [ -e $policy ] || { printf '#!/bin/sh\n# %s\nexit 101\n' "$self" >$policy && chmod +x $policy; }
  apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >/dev/null || failed=1
  ! grep -qxF "# $self" $policy || rm -f $policy   # only the one that was made here
  [ $failed = 0 ] || die "apt-get failed, see above. Without it, install what Debian calls: $*"
}
