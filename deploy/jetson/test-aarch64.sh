#!/bin/bash
# Runs the device half's tests on aarch64, on any Debian-like machine, by emulation.
#
#   sudo ./test-aarch64.sh [--root DIR] [--suite SUITE] [--all] [-- ARGUMENTS OF PYTEST]
#
# Needs qemu-user-static and debootstrap (apt), root, and a Python with pip and hatchling
# (PYTHON, by default that of the repository's .venv). Makes an arm64 root in DIR, takes
# the aarch64 wheels from the package index that this machine's pip is configured for,
# installs edgeloc from the wheel that it builds of this tree, and runs there
#
#   edgeloc-doctor, edgeloc-run --check, edgeloc-run --demo, pytest
#
# DIR is kept: a second run with the same DIR installs only what is new. Emulated code is
# 30 to 50 times slower than native: tests that measure real time are left out, and those
# that map scenes unless --all is given.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
ROOT=/var/tmp/edgeloc-aarch64
SUITE=bookworm
PYTHON=${PYTHON:-$REPOSITORY/.venv/bin/python}
# The nearest to an Orin's Cortex-A78AE that is emulated: dot products, no SVE, no I8MM.
export QEMU_CPU=${QEMU_CPU:-cortex-a76}
ARGUMENTS=()

# What differs between processors, and the commands of a device. Tests that map scenes or
# average thousands of solutions take hours on an emulator: --all.
TESTS=(
  test_types.py features inference
  geometry/test_{camera_model,epipolar,generalized,geodesy,pnp,pnp_upright,triangulate}.py
  tiles/test_{tile_codec,tile_container,tile_bits,tile_tracks,tile_cache}.py
  tiles/test_{format_document,site_manifest,site_models,local_map}.py
  localize/test_{guided,interpolate,track}.py
  runtime/test_{channel,control,intrinsics,ladder,publisher,realtime,telemetry}.py
  cli/test_{board,clocks,doctor,v4l2}.py
)
ALL=(test_types.py geometry features inference tiles localize runtime cli)
# They wait for real time to pass, or start a process a dozen times.
TIMED=(
  tests/runtime/test_capture.py tests/runtime/test_live_sources.py
  tests/runtime/test_systemd_unit.py tests/cli/test_startup.py
)

say() { printf '== %s\n' "$*"; }
die() { printf 'test-aarch64: error: %s\n' "$*" >&2; exit 2; }

while [ $# -gt 0 ]; do
  case $1 in
    --root) ROOT=${2:?--root needs a folder}; shift 2 ;;
    --suite) SUITE=${2:?--suite needs a name}; shift 2 ;;
    --all) TESTS=("${ALL[@]}"); shift ;;
    --) shift; ARGUMENTS=("$@"); break ;;
    -h|--help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; exit 0 ;;
    *) die "unknown option $1; see --help" ;;
  esac
done

check_host() {
  [ "$(id -u)" = 0 ] || die "run as root: it mounts, and makes a root file system"
  if ! command -v debootstrap >/dev/null || [ ! -e /usr/bin/qemu-aarch64-static ]; then
    die "apt-get install qemu-user-static debootstrap"
  fi
  "$PYTHON" -c 'import hatchling, pip' 2>/dev/null ||
    die "PYTHON=$PYTHON has no pip and hatchling; run 'make test' first, or set PYTHON"
}

# The kernel starts aarch64 programs with QEMU once the format is registered; flag F
# keeps QEMU open, so that it is found from inside the root.
enable_emulation() {
  local format=/proc/sys/fs/binfmt_misc
  [ -e $format/register ] || mount -t binfmt_misc binfmt_misc $format ||
    die "binfmt_misc cannot be mounted (modprobe binfmt_misc?)"
  [ -e $format/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >$format/register
  grep -q enabled $format/qemu-aarch64 || echo 1 >$format/qemu-aarch64
}

make_root() {
  [ -e "$ROOT/.ready" ] && return
  say "arm64 root of $SUITE in $ROOT"
  rm -rf "$ROOT"
  mkdir -p "$ROOT"
  # A board has libgomp1 from the start; some wheels link to it.
  debootstrap --arch=arm64 --variant=minbase \
    --include=python3,python3-venv,libgomp1 "$SUITE" "$ROOT" >"$ROOT.log" 2>&1 ||
    die "debootstrap failed; see $ROOT.log"
  touch "$ROOT/.ready"
}

inside() {
  # The mounts go with the namespace, whatever ends it. No /sys: it is that of another
  # kind of processor, and ONNX Runtime crashes over the contradiction; without, it says
  # so and asks the (emulated) kernel what the processor can do.
  # shellcheck disable=SC2016
  unshare --mount --fork sh -c '
    mount --make-rprivate /
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    root=$1; shift
    exec chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 QEMU_CPU="$QEMU_CPU" \
      OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 \
      PATH=/opt/edgeloc/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
  ' sh "$ROOT" "$@"
}

fetch_wheels() {
  local version platforms=() minor
  version=$(inside python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  say "wheels for Python $version on aarch64"
  rm -rf "$ROOT/wheels" "$ROOT/src"
  mkdir -p "$ROOT/wheels" "$ROOT/src"
  (cd "$REPOSITORY" && "$PYTHON" -m hatchling build -t wheel -d "$ROOT/wheels") >/dev/null
  for minor in $(seq 17 36); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
  # Markers are evaluated for the Python that runs pip: what only older ones need is named.
  local extra=()
  [ "$version" = 3.10 ] && extra=(tomli exceptiongroup typing_extensions)
  "$PYTHON" -m pip download --quiet --only-binary=:all: --python-version "$version" \
    "${platforms[@]}" --platform manylinux2014_aarch64 --dest "$ROOT/wheels" \
    "$ROOT"/wheels/edgeloc-*.whl pytest hypothesis packaging onnx pyyaml "${extra[@]}"
  # The tests, and what they read: not the source, which must come from the wheel.
  tar -C "$REPOSITORY" --exclude=__pycache__ -cf - tests deploy models pyproject.toml |
    tar -C "$ROOT/src" -xf -
  # Properties are tried on a few examples: it is another processor, not other mathematics.
  cat >"$ROOT/src/emulated.py" <<'PYTHON'
from hypothesis import HealthCheck, settings

settings.register_profile(
    "emulated",
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
PYTHON
}

install() {
  say "installing"
  [ -e "$ROOT/opt/edgeloc/bin/pip" ] || inside python3 -m venv /opt/edgeloc
  inside sh -c 'pip install --quiet --no-index --find-links=/wheels edgeloc'
  # A wheel of the same version may be of another tree.
  inside sh -c 'pip install --quiet --no-deps --force-reinstall /wheels/edgeloc-*.whl'
  say "installed footprint: $(du -sm "$ROOT/opt/edgeloc" | cut -f1) MB"
  inside pip list --format=freeze | tr '\n' ' '
  echo
  inside sh -c 'pip install --quiet --no-index --find-links=/wheels \
    pytest hypothesis packaging onnx pyyaml'
}

run_commands() {
  say "edgeloc-doctor"
  inside edgeloc-doctor
  say "edgeloc-run --check"
  inside edgeloc-run --check
  say "edgeloc-run --demo"
  inside sh -c 'edgeloc-run --demo --max-frames 20 --quiet >/demo.jsonl'
  "$PYTHON" - "$ROOT/demo.jsonl" <<'PYTHON'
import json, sys
records = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
localized = sum(record["status"] == "LOCALIZED" for record in records)
print(f"{localized} of {len(records)} frames LOCALIZED")
sys.exit(0 if localized >= 0.9 * len(records) > 0 else 1)
PYTHON
}

run_tests() {
  say "pytest"
  local tests=("${TESTS[@]/#/tests/}")
  inside sh -c 'cd /src && exec "$@"' sh python -m pytest -q \
    -p no:cacheprovider -p emulated --hypothesis-profile=emulated --durations=15 \
    -m 'not slow and not data and not device and not camera and not packaging' \
    "${TIMED[@]/#/--ignore=}" "${tests[@]}" "${ARGUMENTS[@]}"
}

check_host
enable_emulation
make_root
fetch_wheels
install
inside uname -m
run_commands
run_tests
say "all green"
