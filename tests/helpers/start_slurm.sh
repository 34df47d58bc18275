#!/usr/bin/env bash
# A small SLURM cluster on this machine alone, for tests: two nodes (two slurmd) with two pretend GPUs each.
#
#   start_slurm.sh start FOLDER    installs Debian's packages where they are missing (root), starts what does not run,
#                                  and prints the `export` with which commands find it
#   start_slurm.sh stop FOLDER     stops the daemons that it started
#
# Configuration, key, state and logs all lie in FOLDER: an installed SLURM's own are neither read nor changed. The
# partitions `cpu` and `gpu` are the first node, `both` is both. The nodes claim to be larger than the machine, so that
# jobs queue for GPUs alone. No accounting: ask squeue for states. Takes a second; 15 s where packages are missing.
set -euo pipefail

fail() { # with 2 where it cannot be started on this machine, with 1 where it should have been
    echo "start_slurm.sh: $1" >&2
    exit "${2:-2}"
}

[ $# = 2 ] || fail "say 'start FOLDER' or 'stop FOLDER'."
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf
socket=$folder/munge.socket

running() { # whether the process of a pid file runs
    [ -s "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid")" 2> /dev/null
}

wait_for() { # a description, then a command that succeeds once the thing is there
    local what=$1 tries=0
    shift
    until "$@" > /dev/null 2>&1; do
        [ $((tries += 1)) -lt 600 ] || fail "$what did not start. See the logs in $folder." 1
        sleep 0.1
    done
}

install_packages() {
    local missing=() package
    for package in slurmctld slurmd slurm-client munge; do
        dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q "ok installed" || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get > /dev/null || fail "SLURM is not installed, and there is no apt-get to install it with."
    [ "$(id -u)" = 0 ] || fail "SLURM is not installed; run this as root once, or install: ${missing[*]}."
    local policy=/usr/sbin/policy-rc.d made="" # says no to every service that the packages would start
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy && chmod +x $policy && made=yes; }
    export DEBIAN_FRONTEND=noninteractive
    local failed=""
    local patient=(-qq -o DPkg::Lock::Timeout=120) # another test may be installing
    { apt-get "${patient[@]}" update && apt-get "${patient[@]}" install -y --no-install-recommends "${missing[@]}"; } \
        > "$folder/apt.log" 2>&1 || failed=yes
    [ -z "$made" ] || rm -f $policy
    [ -z "$failed" ] || fail "apt-get could not install ${missing[*]}: $(tail -1 "$folder/apt.log")"
}

write_configuration() {
    [ ! -s "$SLURM_CONF" ] || return 0
    local host port=$((20000 + RANDOM % 10000)) # other clusters may be there
    host=$(hostname -s)
    getent hosts "$host" > /dev/null || fail "the name of this machine, $host, has no address. Add it to /etc/hosts."
    cat > "$SLURM_CONF" << END
ClusterName=effopd
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# A requeued job starts again once its credential has expired: seconds, not two minutes.
AuthInfo=socket=$socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdSpoolDir=$folder/spool-%n
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdLogFile=$folder/slurmd-%n.log
SlurmdParameters=config_overrides
# Neither systemd nor cgroups are needed.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
MinJobAge=600
KillWait=2
GresTypes=gpu
NodeName=DEFAULT CPUs=64 RealMemory=1000000 Gres=gpu:2 State=UNKNOWN
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1))
NodeName=$host-2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2))
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=$host MaxTime=INFINITE State=UP
PartitionName=both Nodes=ALL MaxTime=INFINITE State=UP
END
    # A GPU is a character device; without one SLURM sets no CUDA_VISIBLE_DEVICES.
    printf 'NodeName=%s Name=gpu File=/dev/null\nNodeName=%s Name=gpu File=/dev/zero\n' \
        "$host" "$host" "$host-2" "$host-2" > "$folder/gres.conf"
    printf 'CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n' > "$folder/cgroup.conf"
}

# Snakemake's job steps lose SLURM_CONF: the srun that they find first on the path sets it again.
write_srun() {
    local srun
    srun=$(PATH=${PATH#"$folder/bin:"} command -v srun)
    mkdir -p "$folder/bin"
    printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$srun" > "$folder/bin/srun"
    chmod +x "$folder/bin/srun"
}

answers() { scontrol ping | grep -q "is UP"; }
is_ready() { [ "$(sinfo -h -N -p both -o %t | grep -cE '^(idle|mix|alloc)$')" = 2 ]; }

start() {
    install_packages
    trap '[ $? = 0 ] || stop' EXIT # nothing half started is left
    write_configuration
    write_srun
    mkdir -p "$folder/state"
    chmod 700 "$folder"
    [ -s "$folder/munge.key" ] || head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 400 "$folder/munge.key"
    running munged || munged --force --socket "$socket" --key-file "$folder/munge.key" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munged.seed"
    wait_for munged munge --no-input --socket "$socket"
    running slurmctld || slurmctld
    wait_for slurmctld answers
    local node
    for node in "$(hostname -s)" "$(hostname -s)-2"; do
        mkdir -p "$folder/spool-$node"
        running "slurmd-$node" || slurmd -N "$node"
    done
    wait_for slurmd is_ready
    echo "export SLURM_CONF=$SLURM_CONF PATH=$folder/bin:\$PATH"
}

stop() {
    local daemon
    for daemon in "slurmd-$(hostname -s)" "slurmd-$(hostname -s)-2" slurmctld munged; do
        ! running "$daemon" || kill "$(cat "$folder/$daemon.pid")"
    done
}

case $1 in
    start | stop) "$1" ;;
    *) fail "say 'start FOLDER' or 'stop FOLDER'." ;;
esac
