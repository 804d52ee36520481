"""Ready files for systemd, Docker Compose and Slurm, with the paths that the deployment names."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from server.deployment.folder import Deployment, Folder
from server.deployment.hardening import hardening
from server.deployment.programs import Program, server_programs

_RESTART = {"superlink": 2, "superexec": 2, "proxy": 2}


def server_units(folder: Folder, deployment: Deployment) -> dict[str, str]:
    """Return the file name to text: what starts the server's three programs on its machine.

    Raises:
        DeploymentError: a program is not installed here (its options are those of the installed one).
    """
    programs = server_programs(folder, deployment)
    target = deployment.machines.folder
    files = {f"systemd/fedllm-{p.name}.service": _service(p, folder, deployment) for p in programs}
    files["docker/Dockerfile"] = DOCKERFILE
    open_ports = (deployment.ports.nodes, deployment.ports.operator)
    ports = "\n".join(f'      - "{port}:{port}"' for port in open_ports if port)
    files["docker/compose.yaml"] = _SERVER_COMPOSE.format(ports=ports)
    files["slurm/server.sbatch"] = _SLURM_SERVER.format(
        programs=deployment.machines.programs, folder=target
    )
    return files


def node_units(name: str, deployment: Deployment) -> dict[str, str]:
    """Return the file name to text: what starts a node on its machine."""
    machines = deployment.machines
    values = {
        "name": name,
        "user": machines.user,
        "folder": machines.folder,
        "programs": machines.programs,
    }
    service = "\n".join(hardening("node", machines.folder))
    return {
        f"systemd/fedllm-node-{name}.service": _NODE_SERVICE.format(
            **values, hardening=service, caches=_caches(machines.folder)
        ),
        "docker/Dockerfile": DOCKERFILE,
        "docker/compose.yaml": _NODE_COMPOSE.format(),
        "docker/gpu.yaml": _GPU_COMPOSE,
        "slurm/node.sbatch": _SLURM_NODE.format(**values),
    }


def _moved(program: Program, folder: Folder, deployment: Deployment) -> list[str]:
    """Return a program's command with the paths of the machine that it is for."""
    target, programs = deployment.machines.folder, deployment.machines.programs
    first, *rest = program.command
    name = PurePosixPath(first).name
    words = [f"{programs}/{name}" if name.startswith("flower") else f"/usr/sbin/{name}"]
    return words + [word.replace(str(folder.path), target) for word in rest]


def _caches(folder: str) -> str:
    """Return the paths of model caches: in the folder, the only writable place (``cache`` of a silo config takes
    precedence)."""
    return f'Environment="FEDLLM_CACHE={folder}/state/cache" "HF_HOME={folder}/state/cache/hub"'


def _service(program: Program, folder: Folder, deployment: Deployment) -> str:
    machines = deployment.machines
    environment = {
        name: value.replace(str(folder.path), machines.folder)
        for name, value in program.environment.items()
        if name != "PATH"
    }
    lines = [
        "[Unit]",
        f"Description=fedllm: {program.name} of the federation {deployment.name}",
        "After=network-online.target",
        "Wants=network-online.target",
        "",
        "[Service]",
        f"User={machines.user}",
        f"WorkingDirectory={machines.folder}",
        *(f'Environment="{name}={value}"' for name, value in environment.items()),
        f'Environment="PATH={machines.programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"',
        _caches(machines.folder),
        f"ExecStart={shlex.join(_moved(program, folder, deployment))}",
    ]
    if program.name == "superlink":
        lines.append(
            f"ExecStartPost={machines.programs}/fedllm deploy register --folder {machines.folder}"
        )
    lines += [
        "Restart=always",
        f"RestartSec={_RESTART[program.name]}",
        *hardening(program.name, machines.folder),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


_NODE_SERVICE = """\
[Unit]
Description=fedllm: node {name}
After=network-online.target
Wants=network-online.target

[Service]
User={user}
WorkingDirectory={folder}
Environment="PATH={programs}:/usr/local/bin:/usr/bin:/bin"
{caches}
ExecStart={programs}/fedllm deploy node --folder {folder}
# SIGTERM tells the server that the node leaves; after a kill the server keeps it for a minute.
KillSignal=SIGTERM
TimeoutStopSec=30
Restart=always
RestartSec=15
{hardening}

[Install]
WantedBy=multi-user.target
"""

DOCKERFILE = """\
# docker build -t fedllm -f Dockerfile SOURCE   (SOURCE: the repository, or what `make wheel` put into dist/)
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light \\
    && rm -rf /var/lib/apt/lists/*
COPY . /source
# Each file that comes from the index is one whose SHA-256 is in the source.
RUN pip install --no-cache-dir --require-hashes -r /source/requirements-build.txt \\
    && pip install --no-cache-dir --require-hashes --no-build-isolation -r /source/requirements-hashed.txt \\
    && pip install --no-cache-dir --no-deps --no-build-isolation --no-index \\
        $(ls /source/fedllm-*.whl 2>/dev/null || echo /source) \\
    && rm -rf /source
RUN useradd --create-home fedllm
USER fedllm
"""

_SERVER_COMPOSE = """\
# export FEDLLM_USER=$(id -u):$(id -g)   (the owner of the deployment's folder, whose keys nobody else can read)
# docker compose -f units/docker/compose.yaml up -d   (in that folder; `fedllm` is the image of Dockerfile)
# docker compose -f units/docker/compose.yaml exec server fedllm deploy status --folder /deployment
services:
  server:
    image: fedllm
    user: "${{FEDLLM_USER:-1000:1000}}"
    command: fedllm deploy server --folder /deployment
    init: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    pids_limit: 2048
    environment:
      HOME: /deployment/state
    volumes:
      - ../..:/deployment
    ports:
{ports}
    restart: always
    stop_grace_period: 30s
"""

_NODE_COMPOSE = """\
# export FEDLLM_USER=$(id -u):$(id -g)   (the owner of the node's folder, whose key nobody else can read)
# docker compose -f units/docker/compose.yaml up -d   (in that folder; `fedllm` is the image of Dockerfile)
services:
  node:
    image: fedllm
    user: "${{FEDLLM_USER:-1000:1000}}"
    command: fedllm deploy node --folder /node
    init: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    pids_limit: 2048
    environment:
      HOME: /node/state
    volumes:
      - ../..:/node
    restart: always
    stop_grace_period: 30s
"""

_GPU_COMPOSE = """\
# docker compose -f units/docker/compose.yaml -f units/docker/gpu.yaml up -d   (needs NVIDIA's container toolkit)
services:
  node:
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              count: 1
              capabilities: [gpu]
"""

_SLURM_NODE = """\
#!/bin/bash
# sbatch node.sbatch   (the node's folder must be on a file system that the job sees)
#SBATCH --job-name=fedllm-{name}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
# A minute before the end of its time the node leaves in order, and the job is queued again.
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
folder=${{FEDLLM_NODE:-{folder}}}
# Several jobs may share a machine: the node's own port follows from the job.
port=$((20000 + ${{SLURM_JOB_ID:-0}} % 20000))
{programs}/fedllm deploy node --folder "$folder" --port "$port" &
node=$!
leave() {{ kill -TERM $node; wait $node || true; }}
trap 'leave; exit 0' TERM INT
trap 'leave; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
wait $node
"""

_SLURM_SERVER = """\
#!/bin/bash
# For a machine that the nodes can reach under the name in deployment.toml (a service node).
#SBATCH --job-name=fedllm-server
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=7-00:00:00
# A minute before the end of its time the server ends in order, and the job is queued again. Runs then go on
# by `fedllm deploy resume`.
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
folder=${{FEDLLM_DEPLOYMENT:-{folder}}}
{programs}/fedllm deploy server --folder "$folder" &
server=$!
leave() {{ kill -TERM $server; wait $server || true; }}
trap 'leave; exit 0' TERM INT
trap 'leave; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
wait $server
"""
