# shellcheck shell=bash
# DEVCLUSTER_SITE=strict: the cluster as strict sites run it. devcluster sources this; see README.md.
#
# Its users are known, and the home directory of who started it is open to them, in a mount namespace of the cluster's
# own: nothing of this machine changes.

site_users=(alice bob)
first_uid=2001

enter_site() { # goes on in the cluster's mount namespace, a new one if it isn't up; needs root
  [ "$(id -u)" = 0 ] || die "DEVCLUSTER_SITE=strict has users of its own, and needs root. Type: unset DEVCLUSTER_SITE"
  [ -z "${DEVCLUSTER_ENTERED:-}" ] || return 0
  export DEVCLUSTER_ENTERED=yes
  if runs munged; then exec nsenter --mount="/proc/$pid/ns/mnt" --wd="$PWD" "$self" "${arguments[@]}"; fi
  [ "${arguments[0]}" = start ] || die "the cluster in $root is stopped. Type: devcluster start"
  exec unshare --mount --propagation private "$self" "${arguments[@]}"
}
make_users() { # in the namespace
  local name uid=$first_uid
  chmod 1777 "$shared"
  cp /etc/passwd "$root/etc/passwd"; cp /etc/group "$root/etc/group"
  for name in "${site_users[@]}"; do
    sed -i "/^$name:/d" "$root/etc/passwd" "$root/etc/group"
    echo "$name:x:$uid:$uid::$root/home/$name:/bin/bash" >>"$root/etc/passwd"
    echo "$name:x:$uid:" >>"$root/etc/group"
    install -d -o "$uid" -g "$uid" "$root/home/$name" "$shared/$name"
    uid=$((uid + 1))
  done
  mount --bind "$root/etc/passwd" /etc/passwd && mount --bind "$root/etc/group" /etc/group ||
    die "can't give the cluster users of its own. To see why, type: dmesg | tail"
  # Python may be installed there. The uppermost directory gives the merged one its mode.
  if [ -z "$(find ~ -maxdepth 0 -perm -o+x)" ]; then
    mkdir -p "$root/open"
    mount -t overlay -o "lowerdir=$root/open:$(readlink -f ~)" devcluster "$(readlink -f ~)" ||
      die "can't open ~ to the cluster's users: no overlay. Type: chmod o+x ~"
  fi
}
write_site() { # appends to what write_configuration wrote
  local i
  mkdir -p "$root/gpu"
  for ((i = 0; i < 4; i++)); do [ -e "$root/gpu/nvidia$i" ] || mknod -m 666 "$root/gpu/nvidia$i" c 1 3; done
  sed -i -e 's/^MaxArraySize=.*/MaxArraySize=51/' -e 's/^SelectTypeParameters=.*/SelectTypeParameters=CR_Core_Memory/' \
    -e '/^NodeName=node[12] /s/$/ Feature=cpu/' -e '/^NodeName=node[34] /s/$/ Gres=gpu:a100:4 Feature=gpu,a100/' "$SLURM_CONF"
  cat >>"$SLURM_CONF" <<END
AccountingStorageEnforce=associations,limits,qos
EnforcePartLimits=ALL
JobSubmitPlugins=lua
GresTypes=gpu
# Memory is counted every second, and a job that takes more than it asked for is killed.
DefMemPerCPU=1500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
PartitionName=gpu Nodes=node[3-4]
PartitionName=batch Nodes=ALL
PartitionName=plain Nodes=ALL
PartitionName=small Nodes=ALL DefMemPerCPU=256
PartitionName=whole Nodes=ALL DefMemPerCPU=256 OverSubscribe=EXCLUSIVE
PartitionName=short Nodes=ALL MaxTime=2
PartitionName=lax Nodes=ALL
END
  for i in 3 4; do echo "NodeName=node$i Name=gpu Type=a100 File=$root/gpu/nvidia[0-3]"; done >"$root/etc/gres.conf"
  cp "${self%/*}/strict.lua" "$root/etc/job_submit.lua"
}
add_accounts() { # every user has two accounts, so none by default
  local users; users=$(IFS=,; echo "${site_users[*]}")
  { sacctmgr -i add account proj,proj2 Cluster=devcluster && sacctmgr -i add user "$users" Account=proj,proj2
    sacctmgr -i add qos debug && sacctmgr -i modify user "$users" set qos+=debug; } >>"$root/log/sacctmgr.out" 2>&1
}
as() { # USER COMMAND...: in the cluster, without privileges
  local name=$1 uid; shift
  uid=$(stat -c %u "$root/home/$name" 2>/dev/null)
  [[ " ${site_users[*]} " = *" $name "* ]] || die "no user '$name'; expected one of: ${site_users[*]}"
  exec env -u DEVCLUSTER_ENTERED HOME="$root/home/$name" USER="$name" LOGNAME="$name" TMPDIR=/tmp \
    setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
}
