# The user's own script, by its own interpreter as the kernel reads the first line: one word, one argument.
hpcsh_script=$hpcsh_dir/slurm_script
IFS= read -r hpcsh_line < "$hpcsh_script" || [ -n "$hpcsh_line" ] || exit 126
hpcsh_line=${hpcsh_line#'#!'}
hpcsh_line=${hpcsh_line#"${hpcsh_line%%[! 	]*}"}
hpcsh_line=${hpcsh_line%"${hpcsh_line##*[! 	]}"}
hpcsh_command=("${hpcsh_line%%[ 	]*}")
hpcsh_argument=${hpcsh_line#"${hpcsh_command[0]}"}
hpcsh_argument=${hpcsh_argument#"${hpcsh_argument%%[! 	]*}"}
[ -z "$hpcsh_argument" ] || hpcsh_command+=("$hpcsh_argument")

# Its arguments, byte by byte: in the C locale no NUL gets lost behind half a character.
hpcsh_command+=("$hpcsh_script")
while IFS= LC_ALL=C read -r -d '' hpcsh_word; do
    hpcsh_command+=("$hpcsh_word")
done < "$hpcsh_dir/script.argv" || exit 126

# Slurm gives some signals to the batch shell alone (sbatch --signal=B:…): hand them on to the script.
hpcsh_caught=
hpcsh_child=
hpcsh_forward() {
    hpcsh_caught=$1
    hpcsh_mark signal "$1"
    [ -z "$hpcsh_child" ] || kill -s "$1" "$hpcsh_child" 2>/dev/null
}
for hpcsh_name in HUP INT QUIT USR1 USR2 TERM ALRM XCPU CONT; do
    trap "hpcsh_forward $hpcsh_name" "$hpcsh_name"
done
# Job control for the start only: a background process would ignore INT and QUIT without it.
set -m
"${hpcsh_command[@]}" <&0 &
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
