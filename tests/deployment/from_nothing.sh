#!/usr/bin/env bash
# A deployment of three nodes by docs/guides/deployment.md, each host a network namespace with an installation of its own.
#
# from_nothing.sh WORK ADDRESS SPACE DEPENDENCIES
#   WORK          folder with dist/ (the wheel, SHA256SUMS), experiment.toml, model/, data/NAME.jsonl; what the hosts have goes there
#   ADDRESS       of the server's host
#   SPACE         prefix of the namespaces' names: SPACEserver, SPACEalpha, ...
#   DEPENDENCIES  site-packages with what fedllm depends on; without it they come from the index
set -euo pipefail
work=$1 address=$2 space=$3 dependencies=${4:-}
silos="alpha beta gamma"
started=()
trap 'kill "${started[@]}" 2>/dev/null; wait' EXIT

# On a host: its own network, home and programs, and nothing of this environment.
command_on() {  # HOST COMMAND...
  words=(ip netns exec "$space$1" env -i HOME="$work/$1" OMP_NUM_THREADS=1 LANG=C.UTF-8
    PATH="$work/$1/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "${@:2}")
}
on() { command_on "$@"; "${words[@]}"; }
start() { command_on "$@"; "${words[@]}" > "$work/$1.out" 2>&1 & started+=($!); }
until_said() {  # HOST TEXT
  for _ in $(seq 600); do grep -q "$2" "$work/$1.out" && return; sleep 1; done
  echo "$1 never said: $2"; cat "$work/$1.out"; exit 1
}

echo "== install"
for host in server $silos; do
  mkdir "$work/$host"
  cp -r "$work/dist" "$work/$host/"
  (cd "$work/$host/dist" && sha256sum -c SHA256SUMS)
  python3 -m venv "$work/$host/opt"
  bin="$work/$host/opt/bin"
  if [ -n "$dependencies" ]; then
    "$bin/pip" install -q --no-index --no-deps "$work/$host"/dist/fedllm-*.whl
    echo "$dependencies" > "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
    "$bin/python" - "$bin" <<'PYTHON'
import sys
from importlib.metadata import distribution
from pathlib import Path
for entry in distribution("flwr").entry_points:
    if entry.group == "console_scripts":
        module, _, name = entry.value.partition(":")
        script = Path(sys.argv[1]) / entry.name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n")
        script.chmod(0o755)
PYTHON
  else
    "$bin/pip" install -q -c "$work/$host/dist/constraints.txt" "$work/$host"/dist/fedllm-*.whl
  fi
done

echo "== server"
on server fedllm deploy init "$work/server/fedllm" --server "$address" --node alpha --node beta --node gamma
start server fedllm deploy server --folder "$work/server/fedllm"
until_said server ready:

echo "== nodes"
for silo in $silos; do
  mv "$work/server/fedllm/for-nodes/$silo" "$work/$silo/fedllm"
  cp "$work/data/$silo.jsonl" "$work/$silo/fedllm/notes.jsonl"
  cat > "$work/$silo/fedllm/silo.toml" <<TOML
name = "$silo"
[data]
path = "notes.jsonl"
labels = ["low", "high"]
[budget]
epsilon = 60.0
delta = 1e-5
accountant = "rdp"
[limits]
local_steps = 4
models = ["*"]
quantities = ["update", "size"]
[model]
path = "$work/model"
device = "cpu"
TOML
  on "$silo" fedllm deploy approve --silo "$work/$silo/fedllm/silo.toml"
  on "$silo" fedllm deploy doctor --folder "$work/$silo/fedllm"
  start "$silo" fedllm deploy node --folder "$work/$silo/fedllm"
done
for _ in $(seq 300); do
  online=$(on server fedllm deploy status --folder "$work/server/fedllm" --json | grep -c '"online"' || true)
  [ "$online" = 3 ] && break
  sleep 1
done

echo "== run"
on server fedllm deploy submit "$work/experiment.toml" --folder "$work/server/fedllm"

echo "== report"
run=$(echo "$work"/server/fedllm/runs/*)
on server fedllm keygen "$work/server/officer.pem"
on server fedllm sign "$run" --key "$work/server/officer.pem" --name "A. Officer"
on server fedllm verify "$run" --public-key "$work/server/officer.pub.pem"

echo "== a silo looks at it, with its own ledger"
cp -r "$run" "$work/beta/run"
cp -r "$work/server/fedllm/nodes" "$work/beta/nodes"
cp "$work/server/officer.pub.pem" "$work/beta/"
on beta fedllm verify "$work/beta/run" --public-key "$work/beta/officer.pub.pem" --node-keys "$work/beta/nodes" \
  --ledger "$work/beta/fedllm/ledger.sqlite"
echo "== done"
