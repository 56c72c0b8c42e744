#!/bin/bash
# usage: tests/issue-811.sh
#
# The sequence of virt-manager issue 811, which cost people their disks: an internal snapshot,
# an external overlay on top, back to the internal snapshot, delete the overlay. There the base
# image was deleted. Here what would harm the overlay is refused by name, deleting the overlay
# deletes the overlay, and the base file has the same bytes all through.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
program=${CENOTE:-$here/../target/debug/cenote}
work=$(mktemp -d "${TMPDIR:-/tmp}/cenote-811.XXXXXX")
trap 'rm -rf "$work"' EXIT

fail() {
    echo "issue-811: $*" >&2
    exit 1
}

cenote() {
    "$program" --state-dir "$work/state" "$@"
}

# refused TEXT WORDS: the command fails, says TEXT, and the base keeps its bytes.
refused() {
    local text=$1 status=0
    shift
    cenote "$@" >"$work/out" 2>&1 || status=$?
    [ $status -ne 0 ] || fail "'cenote $*' was done"
    [ $status -ne 2 ] || fail "'cenote $*' is not a command: $(cat "$work/out")"
    grep -q -e "$text" "$work/out" || fail "'cenote $*' does not name '$text': $(cat "$work/out")"
    unchanged "a refused '$*'"
    echo "refused: cenote $*"
    sed 's/^/    /' "$work/out"
}

unchanged() {
    [ "$(sha256sum <"$base")" = "$sum" ] || fail "the base changed after $*"
}

# write VOLUME PATTERN: its first MiB, through its file; nothing else has it open.
write() {
    qemu-io -f qcow2 -c "write -P $2 0 1M" "$(cenote vol-path "$1" --pool default)" >/dev/null
}

# holds VOLUME PATTERN
holds() {
    qemu-io -r -f qcow2 -c "read -P $2 0 1M" "$(cenote vol-path "$1" --pool default)" >"$work/io" ||
        fail "$1 does not hold $2: $(cat "$work/io")"
    ! grep -q 'verification failed' "$work/io" || fail "$1 does not hold $2"
}

cenote vol-create-as default base 64M --format qcow2
write base 1
cenote vol-snapshot-create base before --pool default
write base 2
cenote vol-overlay base external --pool default
write external 3
base=$(cenote vol-path base --pool default)
sum=$(sha256sum <"$base")

refused external vol-snapshot-revert base before --pool default --yes
refused external vol-snapshot-delete base before --pool default --yes
refused external vol-delete base --pool default --yes
holds external 3

cenote vol-delete external --pool default --yes
unchanged 'the overlay was deleted'
holds base 2
qemu-img snapshot -l "$base" | grep -q before || fail 'the internal snapshot is gone'

# Nothing stands on the base any more, so now the way back is open.
cenote vol-snapshot-revert base before --pool default --yes
holds base 1
qemu-img check -q -f qcow2 "$base" || fail 'qemu-img check finds fault'
echo 'issue-811: the base kept its bytes, and what would have harmed the overlay was refused'
