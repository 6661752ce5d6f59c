# A program with its words, exactly: they are in a file beside this script, NUL between them.
mapfile -d '' -t hpcsh_command < "$hpcsh_dir/command.argv" || exit 126
hpcsh_names=()
[ ! -s "$hpcsh_dir/command.env" ] || mapfile -d '' -t hpcsh_names < "$hpcsh_dir/command.env"
hpcsh_caught=
hpcsh_child=
hpcsh_forward() {
    hpcsh_caught=$1
    hpcsh_mark signal "$1"
    [ -z "$hpcsh_child" ] || kill -s "$1" "$hpcsh_child" 2>/dev/null
}
for hpcsh_name in HUP INT QUIT USR1 USR2 TERM ALRM XCPU; do
    trap "hpcsh_forward $hpcsh_name" "$hpcsh_name"
done
# Several tasks: one process for each, as srun does. The words stay in their file: Slurm keeps a step's argv.
if ((${SLURM_NTASKS:-1} > 1 || ${SLURM_JOB_NUM_NODES:-1} > 1)); then
    hpcsh_task='mapfile -d "" -t words < "$1" || exit 126; exec "${words[@]}"'
    hpcsh_command=(srun --quiet bash -c "$hpcsh_task" task "$hpcsh_dir/command.argv")
fi
hpcsh_run() {
    ((${#hpcsh_names[@]} == 0)) || export "${hpcsh_names[@]}"
    exec "${hpcsh_command[@]}" < /dev/null
}
# Job control for the start only: a background process would ignore INT and QUIT without it.
set -m
hpcsh_run &
hpcsh_child=$!
set +m
[ -z "$hpcsh_caught" ] || kill -s "$hpcsh_caught" "$hpcsh_child" 2>/dev/null
while :; do
    hpcsh_caught=
    wait "$hpcsh_child" 2>/dev/null  # bash says "Killed" there; the exit code says it too
    hpcsh_code=$?
    [ -n "$hpcsh_caught" ] || break
done
exit "$hpcsh_code"
