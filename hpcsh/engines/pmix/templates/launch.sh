#!/bin/bash
# One launch on the first node of an allocation:     launch DVM_DIRECTORY ID TOOL [ARG...]
# and the end of launches that lost their launcher:  launch --orphans DVM_DIRECTORY
#
# prun (PRRTE 3) dies of SIGINT, SIGTERM and SIGHUP without ending its ranks, and those keep their slots. So
# a launch is ended here, on the target, whatever becomes of who asked for it: its ranks carry
# HPCSH_LAUNCH=ID, and `sweep` ends every process that has it, on every node, through the DVM itself.

since() { # the start time of process $1 into $started, "" when it is gone
    local line
    started=
    { read -r line < "/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${line##*) }
    started=${20}
}

sweep() ( # launch $1 on every node; by a step of Slurm's where the DVM does not do it
    id=$1
    unset HPCSH_LAUNCH ${!PMIX_SERVER_URI*}
    timeout -k 1 15 setsid prun --dvm-uri "file:$dvm/uri" --map-by ppr:1:node:oversubscribe \
        bash "$dvm/sweep" "$id" 3 </dev/null >/dev/null 2>&1 && exit
    [ -n "$SLURM_JOB_ID" ] || exit 1
    set -- $(sed -n 's/^nodes //p' "$dvm/facts")
    unset ${!SLURM_STEP*} SLURM_NTASKS SLURM_NPROCS SLURM_TASKS_PER_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU
    timeout -k 1 20 setsid srun --jobid="$SLURM_JOB_ID" --overlap --mem=0 --mpi=none --nodes=$# --ntasks=$# \
        --ntasks-per-node=1 bash "$dvm/sweep" "$id" 3 </dev/null >/dev/null 2>&1
)

orphans() {
    local record pid pid_start child child_start
    for record in "$dvm"/launches/*; do
        [ -f "$record" ] && read -r pid pid_start child child_start < "$record" && [ -n "$child_start" ] || continue
        since "$pid"
        [ "$started" != "$pid_start" ] || continue
        since "$child"
        [ "$started" != "$child_start" ] || kill -s KILL -- "-$child"
        sweep "${record##*/}"
        rm -f "$record"
    done
} 2>/dev/null

ended() { # true when the tool ends within $1 tenths of a second
    local n
    for ((n = 0; n < $1; n++)); do
        kill -0 "$child" || return 0
        sleep 0.1
    done
    return 1
} 2>/dev/null

stop() {
    trap '' HUP INT TERM
    if [ -n "$child" ]; then
        # prterun ends its ranks and daemons itself, unless a second signal follows the first within 5 seconds:
        # whoever stops us may have signalled it already. prun ends when its ranks have ended.
        [ "${tool##*/}" = prun ] || ended 10 || { kill -s TERM -- "-$child" 2>/dev/null; ended 50; }
        sweep "$id"
        ended 20 || { kill -s KILL -- "-$child" 2>/dev/null; sweep "$id"; }
    fi
    rm -f "$record"
    exit "$1"
}

if [ "$1" = --orphans ]; then
    dvm=$2
    orphans
    exit 0
fi
dvm=$1 id=$2 child=
shift 2
tool=$1 record=$dvm/launches/$id
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM
# In a process group of its own: prterun kills its whole group when a program may not be executed. By job
# control and not by setsid, for a background process would ignore SIGINT without it.
set -m
"$@" <&0 &
child=$!
set +m
since $$
self=$started
since "$child"
printf '%s %s %s %s\n' $$ "$self" "$child" "$started" > "$record"
wait "$child"
code=$?
rm -f "$record"
exit "$code"
