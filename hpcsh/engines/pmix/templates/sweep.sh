#!/bin/bash
# End every process of a launch on this node:   sweep ID SECONDS
# SIGTERM, then SIGKILL after SECONDS. Status 1 when one of them is still there.

space=
marked() { # processes that carry the launch's id, or its namespace in a container, and their descendants
    local file pid parent line more
    declare -A mine=()
    found=
    for file in $(grep -lsaz -- "^HPCSH_LAUNCH=$id\$" /proc/[0-9]*/environ 2>/dev/null); do
        pid=${file#/proc/}
        mine[${pid%/environ}]=1
        [ -n "$space" ] || space=$(grep -saz -m 1 '^PMIX_NAMESPACE=' "$file" | tr -d '\0')
    done
    if [ -n "$space" ]; then
        for file in $(grep -lsazFx -- "$space" /proc/[0-9]*/environ 2>/dev/null); do
            pid=${file#/proc/}
            mine[${pid%/environ}]=1
        done
    fi
    [ ${#mine[@]} -gt 0 ] || return 0
    more=1
    while [ -n "$more" ]; do
        more=
        for file in /proc/[0-9]*/stat; do
            { read -r line < "$file"; } 2>/dev/null || continue
            pid=${line%% *}
            set -- ${line##*) }
            parent=$2
            if [ "$1" = Z ]; then unset "mine[$pid]"; continue; fi
            if [ -n "${mine[$parent]}" ] && [ -z "${mine[$pid]}" ]; then mine[$pid]=1 more=1; fi
        done
    done
    unset "mine[$$]"
    found=${!mine[*]}
}

id=$1 seconds=$2 quiet=0 signal=TERM
[ -n "$id" ] || exit 2
# Quiet twice: a launch may have been on its way when its launcher was killed.
for ((n = 0; n < seconds * 5 + 25; n++)); do
    marked
    if [ -z "$found" ]; then
        quiet=$((quiet + 1))
        [ $quiet -ge 2 ] && exit 0
    else
        quiet=0
        [ $n -ge $((seconds * 5)) ] && signal=KILL
        if [ $n -eq 0 ] || [ $signal = KILL ] || [ "$found" != "$before" ]; then
            kill -s $signal -- $found 2>/dev/null
            kill -s CONT -- $found 2>/dev/null
        fi
        before=$found
    fi
    sleep 0.2
done
exit 1
