#!/usr/bin/env bash
# Install another release of this program into build/older, for make test-upgrade: etc/older.sh TAG|COMMIT|WHEEL
set -euo pipefail

cd "$(dirname "$0")/.."
older=${1:?a tag, a commit or a wheel}

rm -rf build/older
mkdir -p build/older
case $older in
    *.whl) source=$older ;;
    *)
        source=build/older/source
        mkdir "$source"
        git archive "$older" | tar -x -C "$source"
        ;;
esac
"${PYTHON:-python3}" -m venv build/older/venv
build/older/venv/bin/pip --disable-pip-version-check --no-input install --quiet "$source[mysql,postgres]"
printf '%s\n' "$older" >build/older/name
