#!/usr/bin/env bash
# The default tests as other machines would run them: tests/machines.sh [configuration ...], without a name all of them.
# Needs an activated environment with '.[test]'. PYTEST_ADDOPTS narrows the tests; OLDEST_ENV names a folder that keeps the environment of
# the oldest versions (several GB) for the next time.
set -u
cd "$(dirname "$0")/.." || exit
all=(plain-processor avx2 one-thread four-threads mkl-compatible elsewhere blank-home read-only oldest)
[ $# -gt 0 ] || set -- "${all[@]}"
for name; do
    [[ " ${all[*]} " == *" $name "* ]] || { echo "error: no configuration is called '$name'; choose among: ${all[*]}" >&2; exit 2; }
done
export PYTHONPATH="$PWD"
logs="$(mktemp -d "${TMPDIR:-/tmp}/machines-XXXXXX")"
skipped=77 not_installed=78 # what `configuration` returns; the log says why

tests() { # [NAME=VALUE ...] [a command that runs what follows]
    env "$@" python -m pytest
}

configuration() {
    case "$1" in
        plain-processor) tests ATEN_CPU_CAPABILITY=default ;; # no AVX
        avx2) tests ATEN_CPU_CAPABILITY=avx2 ;;
        one-thread) tests OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 ;;
        four-threads) tests OMP_NUM_THREADS=4 MKL_NUM_THREADS=4 ;;
        mkl-compatible) tests MKL_CBWR=COMPATIBLE ;; # products of matrices as on any x86 processor
        elsewhere) tests LC_ALL="$(locale -a | grep -m 1 -i '^de_DE.utf' || echo C)" TZ=Asia/Kolkata ;;
        blank-home) mkdir "$logs/a home" && tests HOME="$logs/a home" ;;
        read-only) read_only ;;
        oldest) oldest ;;
    esac
}

read_only() {
    local copy="$logs/checkout" within=()
    mkdir "$copy"
    git ls-files -z | xargs -0 cp --parents -t "$copy" || return
    chmod -R a-w "$copy"
    cd "$copy" || return
    if [ "$(id -u)" = 0 ]; then # permissions do not bind root, a mount does
        within=(unshare --mount bash -c 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && "$@"' "$copy")
        "${within[@]}" true || { echo "root cannot mount a folder read-only here"; return "$skipped"; }
    fi
    tests PYTHONPATH="$copy" "${within[@]}"
}

oldest() {
    local venv="${OLDEST_ENV:-$logs/oldest}"
    python - >"$logs/oldest.txt" <<'END' || return
import configparser

read = configparser.ConfigParser()
read.read("setup.cfg")
extras = read["options.extras_require"]
needed = "\n".join([read["options"]["install_requires"], *(extras[name] for name in ("test", "openai", "serve", "finetune"))])
print("\n".join(line.replace(">=", "==", 1) for line in needed.split() if not line.startswith("recbole-llm4sbr")))
END
    python -m venv "$venv" && . "$venv/bin/activate" && pip install -q -r "$logs/oldest.txt" || return "$not_installed"
    pip freeze
    tests
}

count() { # of tests that are $1, in pytest's last line
    grep -oE "[0-9]+ $1" <<<"$last" | grep -oE "^[0-9]+" || echo 0
}

status=0
table="$(printf '%-16s %7s %7s %8s' configuration passed failed seconds)"
for name; do
    log="$logs/$name.log" started=$SECONDS
    echo "$name: $log"
    (configuration "$name") >"$log" 2>&1 </dev/null
    case $? in
        0) said=passed ;;
        "$skipped") said="skipped: $(tail -n 1 "$log")" ;;
        "$not_installed") said="does not install: $(grep -i error "$log" | tail -n 1)" status=1 ;;
        *) said=FAILED status=1 ;;
    esac
    last="$(grep -E ' in [0-9.]+s( \(|$| =)' "$log" | tail -n 1)"
    table+=$'\n'"$(printf '%-16s %7s %7s %8s  %s' \
        "$name" "$(count passed)" "$(($(count failed) + $(count error)))" "$((SECONDS - started))" "$said")"
done
printf '\n%s\n\nlogs: %s\n' "$table" "$logs"
exit "$status"
