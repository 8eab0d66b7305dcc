#!/bin/bash
# Installs edgeloc on a Jetson with JetPack 6 or 7, or brings an installation up to date.
#
#   sudo ./install.sh [--wheel FILE] [--site FOLDER] [--with-gstreamer]
#   sudo ./install.sh --uninstall [--purge]
#
#   --wheel FILE       install this wheel; default: this source tree
#   --site FOLDER      also install this site, and start
#   --with-gstreamer   compile OpenCV with GStreamer, for CSI cameras (hours on a small
#                      board); wheels of OpenCV have none
#   --no-service       program and scripts only: no user, no units (containers)
#   --allow-any        not only on a Jetson
#   --prefix DIR       where to (default /opt/edgeloc)
#   --root DIR         put all of it below DIR, touch nothing else and start nothing
#   --uninstall        stop, bring back clocks and power mode, remove; options, sites and
#                      logs stay, unless --purge
#
# May be run again at any time: options in /etc/edgeloc and sites are never overwritten.
# Offline: PIP_NO_INDEX=1 PIP_FIND_LINKS=folder-of-wheels ./install.sh --wheel FILE
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
PYTHON=${PYTHON:-/usr/bin/python3}
PREFIX=/opt/edgeloc ROOT='' SPEC='' SITE=''
ALLOW_ANY=0 GSTREAMER=0 SERVICE=1 ACTION=install PURGE=0
SCRIPTS=(edgeloc-site edgeloc-power edgeloc-prepare edgeloc-health)
COMMANDS=(edgeloc-run edgeloc-doctor edgeloc-replay edgeloc-build "${SCRIPTS[@]}")
UNITS=(edgeloc-power.service edgeloc-prepare.service edgeloc.service)
MIN_FREE_MB=1500

say() { printf '== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
die() { printf 'install: error: %s\n' "$*" >&2; exit 2; }

while [ $# -gt 0 ]; do
  case $1 in
    --wheel) SPEC=${2:?--wheel needs a file}; shift 2 ;;
    --site) SITE=${2:?--site needs a folder}; shift 2 ;;
    --prefix) PREFIX=${2:?--prefix needs a folder}; shift 2 ;;
    --root) ROOT=${2:?--root needs a folder}; shift 2 ;;
    --with-gstreamer) GSTREAMER=1; shift ;;
    --no-service) SERVICE=0; shift ;;
    --allow-any) ALLOW_ANY=1; shift ;;
    --uninstall) ACTION=uninstall; shift ;;
    --purge) PURGE=1; shift ;;
    -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; exit 0 ;;
    *) die "unknown option $1; see --help" ;;
  esac
done
case $PREFIX in /*) ;; *) die "--prefix $PREFIX: must begin with /" ;; esac
[ -z "$ROOT" ] || { mkdir -p "$ROOT"; ROOT=$(cd "$ROOT" && pwd); }
VENV=$ROOT$PREFIX
ETC=$ROOT/etc/edgeloc STATE=$ROOT/var/lib/edgeloc LOGS=$ROOT/var/log/edgeloc
SYSTEMD=$ROOT/etc/systemd/system LOGROTATE=$ROOT/etc/logrotate.d/edgeloc
LINKS=$ROOT/usr/local/bin

on_system() { [ -z "$ROOT" ] && [ "$SERVICE" = 1 ]; }
with_systemd() { on_system && [ -d /run/systemd/system ]; }

check_machine() {
  local release l4t
  say "machine"
  [ -n "$ROOT" ] || [ "$(id -u)" = 0 ] || die "run with sudo: it makes a user and units"
  release=$(head -n 1 /etc/nv_tegra_release 2>/dev/null || true)
  l4t=$(sed -nE 's/^# R([0-9]+) .*REVISION: ([0-9.]+).*/\1.\2/p' <<<"$release")
  case $l4t in
    36.*) note "L4T $l4t: JetPack 6" ;;
    38.* | 39.*) note "L4T $l4t: JetPack 7" ;;
    '') [ "$ALLOW_ANY" = 1 ] || die "no /etc/nv_tegra_release: this is no Jetson (--allow-any)"
      note "no Jetson: $(uname -m), networks run on the CPU" ;;
    *) [ "$ALLOW_ANY" = 1 ] ||
      die "L4T $l4t is neither JetPack 6 nor 7: flash the board anew (--allow-any)" ;;
  esac
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$PYTHON: Python 3.10 or later is needed (PYTHON=...)"
  note "$("$PYTHON" -V), $PYTHON"
  if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    [ -z "$ROOT" ] || die "$PYTHON has no venv: apt-get install python3-venv"
    note "installing python3-venv"
    apt-get update -qq && apt-get install -y -qq python3-venv
  fi
  if "$PYTHON" -c 'import tensorrt' 2>/dev/null; then
    note "TensorRT $("$PYTHON" -c 'import tensorrt; print(tensorrt.__version__)')"
  else
    note "Python finds no TensorRT: networks will run on the CPU until you"
    note "  sudo apt-get install nvidia-jetpack python3-libnvinfer"
  fi
  mkdir -p "$VENV"
  local free
  free=$(df -Pm "$VENV" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge $MIN_FREE_MB ] || die "$VENV: $free MB are free, $MIN_FREE_MB are needed"
}

# pip installs while it does not see the system's packages, and TensorRT is seen after. A
# SciPy of the system would otherwise satisfy pip and then meet a NumPy that it was not
# compiled for.
install_program() {
  local spec=${SPEC:-$REPOSITORY} build=''
  [ -e "$spec" ] || die "$spec: is not there"
  say "program in $VENV (some minutes)"
  export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  "$PYTHON" -m venv "$VENV"
  if [ -d "$spec" ]; then
    build=$(mktemp -d)
    "$VENV/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$build" "$spec"
    spec=$(echo "$build"/*.whl)
  fi
  # A wheel of the same version is installed again: it may be another build.
  "$VENV/bin/python" -m pip install --quiet --upgrade "${spec}[yaml]"
  "$VENV/bin/python" -m pip install --quiet --no-deps --force-reinstall "$spec"
  [ -z "$build" ] || rm -rf "$build"
  if [ "$GSTREAMER" = 1 ]; then compile_opencv; fi
  "$PYTHON" -m venv --system-site-packages --without-pip "$VENV"
  note "$("$VENV/bin/edgeloc-run" --version), $(du -sm "$VENV" | cut -f1) MB"
}

compile_opencv() {
  if "$VENV/bin/python" -c 'import cv2, re, sys
sys.exit(not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()))'; then
    note "OpenCV has GStreamer already"
    return
  fi
  say "OpenCV with GStreamer (hours on a small board)"
  [ -n "$ROOT" ] || apt-get install -y -qq build-essential cmake ninja-build python3-dev \
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
  CMAKE_ARGS='-DWITH_GSTREAMER=ON -DBUILD_TESTS=OFF -DBUILD_PERF_TESTS=OFF' \
    "$VENV/bin/python" -m pip install --force-reinstall --no-deps \
    --no-binary opencv-python-headless opencv-python-headless
}

install_files() {
  local name
  say "scripts, options and units"
  for name in "${SCRIPTS[@]}"; do install -m 755 "$HERE/$name" "$VENV/bin/$name"; done
  mkdir -p "$LINKS"
  for name in "${COMMANDS[@]}"; do ln -sfn "$PREFIX/bin/$name" "$LINKS/$name"; done
  mkdir -p "$ETC" "$STATE/sites" "$LOGS"
  for name in "$REPOSITORY/deploy/systemd/run.toml" "$HERE/power.conf"; do
    [ -e "$ETC/$(basename "$name")" ] || install -m 644 "$name" "$ETC/"
  done
  [ "$SERVICE" = 1 ] || return 0
  if on_system; then
    id edgeloc >/dev/null 2>&1 ||
      useradd --system --home-dir "$STATE" --shell /usr/sbin/nologin edgeloc
    local group
    for group in video render; do
      if getent group $group >/dev/null; then usermod -aG $group edgeloc; fi
    done
    chown edgeloc: "$STATE" "$STATE/sites" "$LOGS"
  fi
  mkdir -p "$SYSTEMD/edgeloc.service.d" "$(dirname "$LOGROTATE")"
  for name in "$REPOSITORY/deploy/systemd/edgeloc.service" \
    "$HERE/units/edgeloc-prepare.service" "$HERE/units/edgeloc-power.service"; do
    sed "s|/opt/edgeloc/|$PREFIX/|g" "$name" >"$SYSTEMD/$(basename "$name")"
  done
  install -m 644 "$HERE/units/jetson.conf" "$SYSTEMD/edgeloc.service.d/jetson.conf"
  # Boards without a group cannot start a service that names it.
  if ! getent group render >/dev/null; then
    sed -i '/^SupplementaryGroups=/s/ render//' \
      "$SYSTEMD/edgeloc.service.d/jetson.conf" "$SYSTEMD/edgeloc-prepare.service"
  fi
  install -m 644 "$HERE/units/logrotate" "$LOGROTATE"
  if with_systemd; then
    systemctl daemon-reload
    systemctl enable --quiet "${UNITS[@]}"
    systemctl restart edgeloc-power.service
  fi
}

check_installation() {
  say "check"
  "$VENV/bin/edgeloc-run" --check --quiet
  "$VENV/bin/edgeloc-doctor" | grep -E '^(WARN|MISSING)' -A 1 || true
}

install_given_site() {
  [ -n "$SITE" ] || return 0
  say "site"
  local restart=0
  with_systemd || restart=1
  EDGELOC_STATE=$STATE EDGELOC_BIN=$VENV/bin EDGELOC_NO_RESTART=$restart \
    "$VENV/bin/edgeloc-site" install "$SITE"
}

say_what_is_next() {
  say "done; next"
  [ -e "$STATE/site" ] || note "sudo edgeloc-site install FOLDER      a map (edgeloc-build map)"
  note "sudoedit /etc/edgeloc/run.toml          camera, intrinsics, where poses go"
  note "sudo systemctl restart edgeloc          then: edgeloc-health"
}

uninstall() {
  say "removing"
  if with_systemd; then
    # Stopping edgeloc-power brings back mode and clocks.
    systemctl disable --now --quiet "${UNITS[@]}" 2>/dev/null || true
  fi
  local name
  for name in "${UNITS[@]}"; do rm -f "$SYSTEMD/$name"; done
  rm -rf "$SYSTEMD/edgeloc.service.d" "$LOGROTATE"
  for name in "${COMMANDS[@]}"; do
    if [ "$(readlink "$LINKS/$name" || true)" = "$PREFIX/bin/$name" ]; then
      rm -f "$LINKS/$name"
    fi
  done
  # Only what this script made: a folder with an environment in it.
  if [ -f "$VENV/pyvenv.cfg" ]; then rm -rf "$VENV"; fi
  if with_systemd; then systemctl daemon-reload; fi
  if [ "$PURGE" = 1 ]; then
    rm -rf "$ETC" "$STATE" "$LOGS"
    if on_system && id edgeloc >/dev/null 2>&1; then userdel edgeloc; fi
  else
    note "kept: $ETC, $STATE, $LOGS (--purge removes them)"
  fi
}

if [ "$ACTION" = uninstall ]; then
  [ -n "$ROOT" ] || [ "$(id -u)" = 0 ] || die "run with sudo"
  uninstall
  exit 0
fi
check_machine
install_program
install_files
check_installation
install_given_site
say_what_is_next
