# Shared by up, down and test: paths, messages, environments. Source it with bash.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
STATE=${ML_STATE:-$ROOT/dev-airflow/state}
PY=$ROOT/.venv/bin/python
PY_ML=$ROOT/.venv-ml/bin/python

say() { printf '\033[1m[%3ds]\033[0m %s\n' "$SECONDS" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# A folder is made once per content of what it is made from.
fresh() { [ "$(cat "$1/.made-from" 2>/dev/null)" = "$2" ]; }
stamp() { cat "$@" | sha256sum | cut -d' ' -f1; }

base_python() {
  local python
  for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
    if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'; then
      command -v "$python"; return
    fi
  done
  die "needs Python 3.10 to 3.13; set PYTHON=/path/to/python"
}

venv() { # FOLDER REQUIREMENTS MESSAGE [PACKAGE]: an environment; the package comes by plain pip, before the others
  local want python
  want=$(stamp "$2")
  if fresh "$1" "$want"; then return; fi
  say "$3"
  python=$(base_python)
  rm -rf "$1"
  "$python" -m venv "$1" || die "'$python -m venv' failed; on Debian: apt-get install python3-venv"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check uv "${@:4}"
  "$1/bin/uv" pip install --quiet --python "$1" --compile-bytecode -r "$2"
  echo "$want" > "$1/.made-from"
}

setup() {
  local want
  venv .venv dev-airflow/requirements/airflow.txt "installing Airflow and the tools of the in-process stages into .venv"
  venv .venv-ml dev-airflow/requirements/ml.txt \
    "installing the stages' tools, PyTorch among them, into .venv-ml (the other Python)" torch==2.13.0
  want=$(find airflow_ml_provider pyproject.toml -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  if [ "$(cat .venv/.provider 2>/dev/null)" != "$want" ]; then
    say "building the provider's wheel and installing it as a user would"
    rm -rf dist
    .venv/bin/uv build --quiet --wheel --python .venv --out-dir dist
    .venv/bin/uv pip install --quiet --python .venv --reinstall --no-deps --compile-bytecode dist/airflow_ml_provider-*.whl
    echo "$want" > .venv/.provider
  fi
}
