# What the smoke tests have in common: a folder that is cleared away, a server that is ended, steps within bounds.
# Sourced after VENV and STEP (seconds of a step) are set; the server's log goes to $work/server.log.

work="$(mktemp -d)"
stop() { # end the server and whoever waits for it, and clear away; after a failure the log is shown
    local status=$? running
    trap - EXIT
    running="$(jobs -p)"
    # shellcheck disable=SC2086
    [ -z "$running" ] || kill $running 2>/dev/null || true
    for _ in $(seq 50); do [ -n "$(jobs -pr)" ] || break; sleep 0.2; done
    # shellcheck disable=SC2086
    [ -z "$running" ] || kill -9 $running 2>/dev/null || true
    [ "$status" -eq 0 ] || [ ! -f "$work/server.log" ] || tail -n 40 "$work/server.log" >&2
    rm -rf "$work"
    exit "$status"
}
trap stop EXIT

step() { # TITLE COMMAND...: within bounds, its output only where it fails
    printf '%s\n' "$1"
    timeout --foreground "$STEP" "${@:2}" >"$work/step.log" 2>&1 || {
        tail -n 20 "$work/step.log" >&2
        die "stopped: the step above failed"
    }
}
