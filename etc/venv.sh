#!/usr/bin/env bash
# Bring .venv up to date: etc/venv.sh runtime|dev [EXTRA]
#
# .venv/stamp says what was installed, for which interpreter and place. It is removed before anything changes and
# written last, so an interrupted run is begun again from nothing, and a second run does nothing and needs no network.
# "dev" holds all that "runtime" does. EXTRA names more of pyproject.toml's extras to have beside it, for one make target;
# .venv/stamp-EXTRA does for it what .venv/stamp does for the rest.
set -euo pipefail

cd "$(dirname "$0")/.."
kind=${1:?runtime or dev}
extra=${2-}
python=${PYTHON:-python3}
venv=.venv
stamp=$venv/stamp

# Two make commands may be started at once on a fresh clone; the second waits for the first.
exec 9<etc/venv.sh
flock 9

base="$PWD $("$python" -c 'import sys; print(sys.executable, *sys.version_info[:3])')"
# Of pyproject.toml, what packages depend on; settings of ruff or pytest install nothing.
wanted=$("$python" - <<'END'
import json, tomllib
from pathlib import Path
pyproject = tomllib.loads(Path("pyproject.toml").read_text())
print(json.dumps([Path("notary/__init__.py").read_text(), pyproject["project"], pyproject["build-system"]]))
END
)
have=() # kind, base, wanted
[ -f $stamp ] && [ -x $venv/bin/python ] && mapfile -t have <$stamp

# Never take away what the other command installed.
[ "${have[0]-}" = dev ] && kind=dev
if [ "${have[*]-}" != "$kind $base $wanted" ]; then
    rm -f $stamp
    if [ "${have[1]-}" != "$base" ]; then
        echo "Creating $venv with $("$python" -V)"
        rm -rf $venv
        "$python" -m venv $venv
    fi
    requirement=.
    [ "$kind" = dev ] && requirement='.[dev]'
    echo "Installing Python packages into $venv"
    $venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --editable "$requirement"
    printf '%s\n' "$kind" "$base" "$wanted" >$stamp
fi

[ -n "$extra" ] || exit 0
[ -f "$stamp-$extra" ] && [ "$(cat "$stamp-$extra")" = "$wanted" ] && exit 0
echo "Installing what make $extra needs into $venv"
$venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --editable ".[$extra]"
printf '%s\n' "$wanted" >"$stamp-$extra"
