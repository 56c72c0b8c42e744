#!/bin/bash
# usage: tests/chain-ops.sh SEED [COUNT]
#
# COUNT (200) random operations on 20 volumes with the built `cenote`, each also done by
# qemu-img alone on a mirror. After every step each volume of the families touched passes
# `qemu-img check` and compares equal to its mirror; every 25th step and at the end all do.
# CENOTE names the program under test (target/debug/cenote). The same seed gives the same run.
set -euo pipefail

seed=${1:?usage: tests/chain-ops.sh SEED [COUNT]}
count=${2:-200}
first_seed=$seed
here=$(cd "$(dirname "$0")" && pwd)
program=${CENOTE:-$here/../target/debug/cenote}
slots=20

for tool in qemu-img qemu-io; do
    command -v "$tool" >/dev/null || {
        echo "chain-ops: no $tool: run 'cargo xtask setup' (package qemu-utils)" >&2
        exit 1
    }
done
[ -x "$program" ] || {
    echo "chain-ops: no $program: run 'cargo build'" >&2
    exit 1
}

work=$(mktemp -d "${TMPDIR:-/tmp}/cenote-chain-ops.XXXXXX")
mirror=$work/mirror
mkdir "$mirror"
server=
done_ok=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    if [ -n "$done_ok" ]; then
        rm -rf "$work"
    else
        echo "chain-ops: FAILED in step $step (seed $first_seed): $what" >&3
        [ ! -s "$work/log" ] || tail -n 20 "$work/log" >&3
        echo "chain-ops: files are in $work" >&3
    fi
}
step=0
what='setting up'
# An operation's messages go to a file, and the trap may run inside one.
exec 3>&2
trap finish EXIT

# What is known of each volume: format, backing volume, size, internal snapshots.
declare -A format=() backing=() size=() snapshots=() tally=()
touched=()
snapshot_number=0
idle=

die() {
    what="$what: $*"
    exit 1
}

# rnd N: a number below N in R. Not in a subshell, so that the sequence goes on.
rnd() {
    seed=$(((seed * 6364136223846793005 + 1442695040888963407) & 0x7fffffffffffffff))
    R=$(((seed >> 24) % $1))
}

cenote() {
    "$program" --state-dir "$work/state" "$@"
}

path() {
    echo "$pool/$1"
}

# ------------------------------------------------------------------ choosing

children() {
    local volume
    for volume in "${!backing[@]}"; do
        [ "${backing[$volume]}" != "$1" ] || echo "$volume"
    done | sort
}

is_leaf() {
    [ -z "$(children "$1")" ]
}

# Whether $1 is $2 or stands on it.
stands_on() {
    local volume=$1
    while [ -n "$volume" ]; do
        [ "$volume" != "$2" ] || return 0
        volume=${backing[$volume]}
    done
    return 1
}

depth() {
    local volume=$1 depth=0
    while [ -n "${backing[$volume]}" ]; do
        volume=${backing[$volume]}
        depth=$((depth + 1))
    done
    echo $depth
}

# pick PREDICATE: a random volume for which it holds, in V; fails when there is none.
pick() {
    local volume fitting=()
    for volume in $(printf '%s\n' "${!format[@]}" | sort); do
        ! "$@" "$volume" || fitting+=("$volume")
    done
    [ ${#fitting[@]} -gt 0 ] || return 1
    rnd ${#fitting[@]}
    V=${fitting[$R]}
}

any() { true; }
leaf() { is_leaf "$1"; }
plain_leaf() { is_leaf "$1" && [ -z "${snapshots[$1]}" ]; }
raw_leaf() { [ "${format[$1]}" = raw ] && is_leaf "$1"; }
qcow2_leaf() { [ "${format[$1]}" = qcow2 ] && is_leaf "$1"; }
snapshotted_leaf() { is_leaf "$1" && [ -n "${snapshots[$1]}" ]; }
shallow() { [ "$(depth "$1")" -lt 8 ]; }
has_child() { ! is_leaf "$1"; }
plain_overlay() { [ -n "${backing[$1]}" ] && is_leaf "$1" && [ -z "${snapshots[$1]}" ]; }
# An overlay that is its backing volume's only one, so that a commit changes nobody else.
committable() { plain_overlay "$1" && [ "$(children "${backing[$1]}" | wc -l)" = 1 ]; }
# A volume in the middle of a chain, none of whose overlays has snapshots.
middle() {
    local child
    [ -n "${backing[$1]}" ] && [ -z "${snapshots[$1]}" ] && ! is_leaf "$1" || return 1
    for child in $(children "$1"); do
        [ -z "${snapshots[$child]}" ] || return 1
    done
}

# A free name in N; fails when all slots are taken.
free_name() {
    local number
    [ ${#format[@]} -lt $slots ] || return 1
    for number in $(seq -w 1 $slots); do
        N=v$number
        [ -n "${format[$N]:-}" ] || return 0
    done
    return 1
}

random_size() {
    rnd 24
    S=$((1048576 + R * 524288))
    rnd 4
    [ "$R" != 0 ] || S=$((S + 512 * 77))
}

# ---------------------------------------------------------------- operations
# Each does the same with cenote and with qemu-img, updates what is known and sets `what`.
# One that has nothing to work on says so in `idle`, and another is chosen. They are never called
# in a condition, where a failing command would not end the script.

record() {
    format[$1]=$2 backing[$1]=$3 size[$1]=$4 snapshots[$1]=
    touched+=("$1")
}

op_create() {
    free_name || { idle=yes && return; }
    random_size
    rnd 4
    local kind=qcow2
    [ "$R" != 0 ] || kind=raw
    what="create $N, $kind, $S bytes"
    cenote vol-create-as default "$N" "$S" --allocation 0 --format $kind
    qemu-img create -q -f $kind "$mirror/$N" "$S"
    record "$N" $kind '' "$S"
}

op_overlay() {
    { free_name && pick shallow; } || { idle=yes && return; }
    what="overlay $N on $V"
    cenote vol-overlay "$V" "$N" --pool default
    qemu-img create -q -f qcow2 -F "${format[$V]}" -b "$mirror/$V" "$mirror/$N"
    record "$N" qcow2 "$V" "${size[$V]}"
}

# serve VOLUME: starts vol-serve, which ends after its first client, and waits for its socket.
serve() {
    rm -f "$work/socket"
    # Not through the function: the process that is waited for is to be the server itself.
    "$program" --state-dir "$work/state" vol-serve "$1" --pool default --socket "$work/socket" \
        --exit-with-client --timeout 10m >"$work/serve.log" 2>&1 &
    server=$!
    local tries=0
    until [ -S "$work/socket" ]; do
        kill -0 $server 2>/dev/null || die "vol-serve ended: $(cat "$work/serve.log")"
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || die "vol-serve made no socket"
        sleep 0.05
    done
}

end_of_serving() {
    local status=0
    wait "$server" || status=$?
    server=
    [ $status = 0 ] || die "vol-serve ended with $status: $(cat "$work/serve.log")"
}

# commands VOLUME: qemu-io's words for one to four random writes, in C.
commands() {
    local number offset length sectors=$((${size[$1]} / 512)) pattern
    rnd 4
    C=()
    for number in $(seq 0 "$R"); do
        rnd "$sectors"
        offset=$R
        rnd 3
        case $R in
            0) rnd 16 ;;
            1) rnd 256 ;;
            *) rnd 2048 ;;
        esac
        length=$((R + 1))
        [ $((offset + length)) -le "$sectors" ] || length=$((sectors - offset))
        rnd 255
        pattern=$((R + 1))
        rnd 6
        if [ "$R" = 0 ]; then
            C+=(-c "write -z $((offset * 512)) $((length * 512))")
        else
            C+=(-c "write -P $pattern $((offset * 512)) $((length * 512))")
        fi
    done
    C+=(-c flush)
}

op_write() {
    pick leaf || { idle=yes && return; }
    commands "$V"
    what="write to $V: ${C[*]}"
    serve "$V"
    qemu-io -f raw "${C[@]}" "nbd+unix:///?socket=$work/socket" >"$work/qemu-io.log" 2>&1 ||
        die "$(cat "$work/qemu-io.log")"
    end_of_serving
    qemu-io -f "${format[$V]}" "${C[@]}" "$mirror/$V" >/dev/null
    touched+=("$V")
}

# As with virsh, what is uploaded goes into the volume's file, so into a raw volume.
op_upload() {
    pick raw_leaf || { idle=yes && return; }
    local sectors=$((${size[$V]} / 512)) offset length
    rnd "$sectors"
    offset=$R
    rnd 512
    length=$((R + 1))
    [ $((offset + length)) -le "$sectors" ] || length=$((sectors - offset))
    what="upload $length sectors to $V at sector $offset"
    # Bytes from the seed: AES in counter mode over zeroes would need openssl; awk has enough.
    rnd 1000000
    awk -v s="$R" -v n=$((length * 512)) 'BEGIN {
        srand(s); while (n > 0) { line = rand() " " rand() "\n"; if (length(line) > n)
        line = substr(line, 1, n); printf "%s", line; n -= length(line) } }' >"$work/upload"
    cenote vol-upload "$V" "$work/upload" --pool default --offset $((offset * 512)) --length $((length * 512)) --yes
    qemu-io -f "${format[$V]}" -c "write -s $work/upload $((offset * 512)) $((length * 512))" \
        "$mirror/$V" >/dev/null
    touched+=("$V")
}

op_commit() {
    pick committable || { idle=yes && return; }
    local base=${backing[$V]} keep=()
    rnd 2
    [ "$R" = 0 ] || keep=(--keep)
    what="commit $V into $base ${keep[*]}"
    cenote vol-commit "$V" --pool default --yes "${keep[@]}"
    # QEMU's way keeps the overlay, emptied.
    qemu-img commit -q -f qcow2 "$mirror/$V"
    [ "${size[$V]}" -le "${size[$base]}" ] || size[$base]=${size[$V]}
    touched+=("$base")
    if [ -n "${keep[*]}" ]; then
        touched+=("$V")
    else
        forget "$V"
    fi
}

op_rebase() {
    pick plain_overlay || { idle=yes && return; }
    local overlay=$V
    not_above() { ! stands_on "$1" "$overlay" && [ "$(depth "$1")" -lt 8 ]; }
    pick not_above || { idle=yes && return; }
    what="rebase $overlay from ${backing[$overlay]} onto $V"
    cenote vol-rebase "$overlay" --backing "$V" --pool default
    qemu-img rebase -q -f qcow2 -F "${format[$V]}" -b "$mirror/$V" "$mirror/$overlay"
    backing[$overlay]=$V
    touched+=("$overlay" "$V")
}

op_flatten() {
    pick plain_overlay || { idle=yes && return; }
    what="flatten $V"
    touched+=("${backing[$V]}" "$V")
    cenote vol-flatten "$V" --pool default
    qemu-img rebase -q -f qcow2 -b '' "$mirror/$V"
    backing[$V]=
}

op_delete_middle() {
    pick middle || { idle=yes && return; }
    local below=${backing[$V]} child
    what="delete $V from the middle of its chain"
    for child in $(children "$V"); do
        qemu-img rebase -q -f qcow2 -F "${format[$below]}" -b "$mirror/$below" "$mirror/$child"
        touched+=("$child")
    done
    cenote vol-remove-layer "$V" --pool default --yes
    for child in $(children "$V"); do backing[$child]=$below; done
    forget "$V"
}

op_delete() {
    { [ ${#format[@]} -gt $((slots * 3 / 4)) ] && pick leaf; } || { idle=yes && return; }
    what="delete $V"
    cenote vol-delete "$V" --pool default --yes
    forget "$V"
}

forget() {
    [ ! -e "$(path "$1")" ] || die "$1 is still there"
    rm "$mirror/$1"
    unset "format[$1]" "backing[$1]" "size[$1]" "snapshots[$1]"
}

op_resize() {
    pick plain_leaf || { idle=yes && return; }
    random_size
    what="resize $V from ${size[$V]} to $S bytes"
    local shrink=()
    [ "$S" -ge "${size[$V]}" ] || shrink=(--shrink)
    cenote vol-resize "$V" "$S" --pool default "${shrink[@]}" --yes
    qemu-img resize -q -f "${format[$V]}" "${shrink[@]}" "$mirror/$V" "$S"
    # qemu-img shows again what a smaller size once cut off inside a cluster; ours is zero.
    if [ "$S" -gt "${size[$V]}" ]; then
        qemu-io -f "${format[$V]}" -c "write -q -z ${size[$V]} $((S - ${size[$V]}))" "$mirror/$V"
    fi
    size[$V]=$S
    touched+=("$V")
}

op_snapshot_create() {
    pick qcow2_leaf || { idle=yes && return; }
    snapshot_number=$((snapshot_number + 1))
    what="snapshot s$snapshot_number of $V"
    cenote vol-snapshot-create "$V" "s$snapshot_number" --pool default
    qemu-img snapshot -q -c "s$snapshot_number" "$mirror/$V"
    snapshots[$V]="${snapshots[$V]:+${snapshots[$V]} }s$snapshot_number"
    touched+=("$V")
}

# A random snapshot of $1, in T.
pick_snapshot() {
    local names
    read -ra names <<<"${snapshots[$1]}"
    rnd ${#names[@]}
    T=${names[$R]}
}

op_snapshot_revert() {
    pick snapshotted_leaf || { idle=yes && return; }
    pick_snapshot "$V"
    what="revert $V to $T"
    cenote vol-snapshot-revert "$V" "$T" --pool default --yes
    qemu-img snapshot -q -a "$T" "$mirror/$V"
    touched+=("$V")
}

op_snapshot_delete() {
    pick snapshotted_leaf || { idle=yes && return; }
    pick_snapshot "$V"
    what="delete snapshot $T of $V"
    cenote vol-snapshot-delete "$V" "$T" --pool default --yes
    qemu-img snapshot -q -d "$T" "$mirror/$V"
    local name left=
    for name in ${snapshots[$V]}; do
        [ "$name" = "$T" ] || left="${left:+$left }$name"
    done
    snapshots[$V]=$left
    touched+=("$V")
}

op_convert() {
    { free_name && pick any; } || { idle=yes && return; }
    rnd 3
    local kind=qcow2 compress=()
    case $R in
        0) kind=raw ;;
        1) compress=(--compress) ;;
    esac
    what="convert $V to $N, $kind ${compress[*]}"
    cenote vol-convert "$V" "$N" --pool default --format $kind "${compress[@]}"
    qemu-img convert -q -f "${format[$V]}" -O $kind "$mirror/$V" "$mirror/$N"
    record "$N" $kind '' "${size[$V]}"
}

op_clone() {
    { free_name && pick any; } || { idle=yes && return; }
    what="clone $V to $N"
    cenote vol-clone "$V" "$N" --pool default
    qemu-img convert -q -f "${format[$V]}" -O "${format[$V]}" "$mirror/$V" "$mirror/$N"
    record "$N" "${format[$V]}" '' "${size[$V]}"
}

# What others stand on is not written, resized or deleted.
op_refusals() {
    pick has_child || { idle=yes && return; }
    what="refusals of $V, on which others stand"
    local before after
    before=$(sha256sum <"$(path "$V")")
    ! cenote vol-delete "$V" --pool default --yes >"$work/refused" 2>&1 || die "vol-delete did it"
    ! cenote vol-resize "$V" 64M --pool default --yes >"$work/refused" 2>&1 || die "vol-resize did it"
    echo x >"$work/upload"
    ! cenote vol-upload "$V" "$work/upload" --pool default --yes >"$work/refused" 2>&1 || die "vol-upload did it"
    after=$(sha256sum <"$(path "$V")")
    [ "$before" = "$after" ] || die "the file changed"
    touched+=("$V")
}

# ------------------------------------------------------------------- judging

# Of a qcow2 image from its header (bytes 24 to 31, big-endian), which is quicker than asking.
virtual_size() {
    if [ "$1" = qcow2 ]; then
        od -An -t u8 --endian=big -j 24 -N 8 "$2" | tr -d ' '
    else
        stat -c %s "$2"
    fi
}

judge() {
    local volume=$1 file text
    file=$(path "$volume")
    if [ "${format[$volume]}" = qcow2 ]; then
        text=$(qemu-img check -f qcow2 "$file" 2>&1) || die "qemu-img check $volume: $text"
    fi
    text=$(qemu-img compare -f "${format[$volume]}" -F "${format[$volume]}" "$file" "$mirror/$volume" 2>&1) ||
        die "$volume differs from its mirror: $text"
    # A comparison takes zeroes behind the shorter one's end for equal.
    text=$(virtual_size "${format[$volume]}" "$file")
    [ "$text" = "${size[$volume]}" ] || die "$volume has $text bytes, not ${size[$volume]}"
}

# The lowest volume of a chain.
root() {
    local volume=$1
    while [ -n "${backing[$volume]}" ]; do volume=${backing[$volume]}; done
    echo "$volume"
}

judge_families() {
    local volume roots=' '
    for volume in "${touched[@]}"; do
        [ -z "${format[$volume]:-}" ] || roots+="$(root "$volume") "
    done
    for volume in "${!format[@]}"; do
        [[ $roots != *" $(root "$volume") "* ]] || judge "$volume"
    done
}

judge_all() {
    local volume
    for volume in "${!format[@]}"; do judge "$volume"; done
}

# ----------------------------------------------------------------------- run

pool=$(dirname "$(cenote vol-create-as default probe 1M --format raw >/dev/null && cenote vol-path probe --pool default)")
cenote vol-delete probe --pool default --yes >/dev/null

operations=(create create create overlay overlay overlay overlay write write write write write
    upload commit rebase flatten delete_middle delete resize snapshot_create snapshot_create
    snapshot_revert snapshot_delete convert clone refusals)
while [ $step -lt "$count" ]; do
    rnd ${#operations[@]}
    operation=${operations[$R]}
    touched=() idle=
    what=$operation
    "op_$operation" >"$work/log" 2>&1
    [ -z "$idle" ] || continue
    step=$((step + 1))
    tally[$operation]=$((${tally[$operation]:-0} + 1))
    if [ $((step % 25)) = 0 ]; then judge_all; else judge_families; fi
done
what='the last look'
judge_all
done_ok=yes

summary=
for operation in $(printf '%s\n' "${!tally[@]}" | sort); do
    summary+="${summary:+, }$operation ${tally[$operation]}"
done
echo "chain-ops: seed $first_seed: $count operations on ${#format[@]} volumes left ($summary)"
echo "$count passed, 0 failed"
