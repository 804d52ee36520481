"""nginx in front of the SuperLink: what of it a node may reach, and nothing else.

Flower serves the nodes' interface (``/v1/fleet/``), the control interface (``/v1/control/``, which
starts runs and has no authentication of its own) and the app processes' (``/v1/runtime/``) on one port.
So that port stays on loopback. The public port carries requests of exactly the form
``POST /v1/fleet/NAME``; SuperLink itself then asks for the node's signature. The second public port, if
there is one, carries the control interface to callers with the operator's certificate.

SuperLink reads a request whole before it asks for the signature, and keeps the memory. So what can be in progress is
bounded here: the length of each kind of request, requests in progress and a second of one address, pieces of answers
of all together, and the time that a caller may take. At most :func:`most_memory` bytes are on their way at once. A
request without a node's signature at all is refused before its body is read.

Access log: time, address, verdict (``ok``, ``REFUSED``, ``GONE``: the caller hung up, ``DOWN``: no SuperLink), request, status, and why it was refused.
Failed TLS handshakes (a caller that does not trust this server, or one with a wrong certificate) are in
the error log.
"""

from __future__ import annotations

from server.deployment.folder import Deployment

_PIECE, _TREE, _OTHER = 8 * 2**20, 2**20, 64 * 2**10
"""Bytes of a request at most: a piece of an answer (Flower cuts arrays into pieces of 5 MiB), the list of an answer's
pieces, anything else."""
_OPERATORS = 64 * 2**20
"""Bytes of a request of the operator, who sends the app."""
_CONNECTIONS = 1024

_HEAD = """\
# Written by `fedllm deploy init` from deployment.toml; `fedllm deploy write` writes it anew.
# Start: nginx -p FOLDER -c nginx.conf -e logs/proxy-error.log
daemon off;
pid state/nginx.pid;
error_log logs/proxy-error.log info;
worker_processes 2;
events { worker_connections %(worker_connections)d; }

http {
    map $status $verdict {
        ~^[23]  ok;
        499     GONE;
        502     DOWN;
        default REFUSED;
    }
    map $status $why {
        ~^[23]  "-";
        400     "no valid client certificate, or no HTTP";
        401     "SuperLink: signature, clock or node does not fit";
        403     "not served at this port, or a certificate that was replaced";
        412     "SuperLink: unknown key, or the node's last connection has not expired";
        408     "too slow";
        413     "message too large";
        499     "the caller hung up before the answer";
        502     "SuperLink is not running";
        503     "too much at once from this address, or too many answers at once: comes again";
        default "see SuperLink's log";
    }
    # What every node does all the time, and did well, is no news.
    map "$request_uri $status" $news {
        "~^/v1/fleet/(pull-messages|send-node-heartbeat|pull-object|push-object|confirm-message-received) 200$" 0;
        default 1;
    }
    log_format readable '$time_iso8601 $remote_addr $verdict "$request_method $request_uri" '
                        'status=$status why="$why" caller="$ssl_client_s_dn" '
                        'in=$request_length out=$bytes_sent seconds=$request_time';
    access_log logs/proxy-access.log readable if=$news;

    server_tokens off;
    default_type text/plain;
    client_max_body_size %(other)d;
    client_body_buffer_size 64k;
    client_header_buffer_size 2k;
    large_client_header_buffers 4 8k;
    # Time between two reads of a caller, not for the whole.
    client_header_timeout 15s;
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_timeout 75s;
    reset_timedout_connection on;
    limit_conn_zone $binary_remote_addr zone=addresses:10m;
    limit_conn_zone $server_name zone=pushes:1m;
    limit_req_zone $binary_remote_addr zone=rate:10m rate=%(requests)dr/s;
    limit_conn_status 503;
    limit_req_status 503;
    limit_conn_log_level warn;
    limit_req_log_level warn;
    map "$http_flwr_public_key $http_flwr_timestamp $http_flwr_signature" $unsigned {
        "~^[A-Za-z0-9+/=]{64,4096} [0-9TZ:.+-]{10,64} [A-Za-z0-9+/=]{64,1024}$" 0;
        default 1;
    }
    client_body_temp_path state/nginx-body;
    proxy_temp_path state/nginx-proxy;
    fastcgi_temp_path state/nginx-fastcgi;
    uwsgi_temp_path state/nginx-uwsgi;
    scgi_temp_path state/nginx-scgi;

    ssl_certificate tls/server.pem;
    ssl_certificate_key tls/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;

    upstream superlink {
        server 127.0.0.1:%(superlink)d;
        keepalive 16;
    }
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host localhost;
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate tls/ca.pem;
    proxy_ssl_name localhost;
    proxy_ssl_protocols TLSv1.2 TLSv1.3;
    # Pieces are passed on as they come: nothing of a message touches the disk here.
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_connect_timeout 5s;
    proxy_read_timeout 300s;
    proxy_send_timeout 300s;
"""

_NODES = """
    # Nodes.
    server {
        %(listen_nodes)s
        server_name nodes;
        ssl_session_cache shared:nodes:1m;
        # The request as it came is what is passed on, so it is what is checked: nothing encoded, no dots.
        if ($request_uri !~ "^/v1/fleet/[a-z-]+$") { return 403 "%(refusal)s\\n"; }
        if ($request_method != POST) { return 403 "%(refusal)s\\n"; }
        if ($unsigned) { return 401 "%(unsigned)s\\n"; }
        limit_conn addresses %(connections)d;
        limit_req zone=rate burst=%(burst)d nodelay;
        location / { proxy_pass https://superlink; }
        location = /v1/fleet/push-messages {
            client_max_body_size %(tree)d;
            limit_conn addresses %(connections)d;
            limit_conn pushes %(pushes)d;
            proxy_pass https://superlink;
        }
        location = /v1/fleet/push-object {
            client_max_body_size %(piece)d;
            limit_conn addresses %(connections)d;
            limit_conn pushes %(pushes)d;
            proxy_pass https://superlink;
        }
    }
"""

_OPERATOR = """
    # The operator.
    server {
        %(listen_operator)s
        # No handshake is shortened here: each shows the certificate.
        ssl_session_cache off;
        ssl_session_tickets off;
        ssl_client_certificate tls/ca.pem;
        ssl_verify_client on;
        ssl_verify_depth 1;
        # The certificate made last, and no older one that has not ended yet.
        if ($ssl_client_serial != "%(serial)s") { return 403 "%(replaced)s\\n"; }
        if ($request_uri !~ "^/v1/control/[a-z-]+$") { return 403 "%(operator_refusal)s\\n"; }
        if ($request_method != POST) { return 403 "%(operator_refusal)s\\n"; }
        client_max_body_size %(operators)d;
        limit_conn addresses %(connections)d;
        location / {
            proxy_pass https://superlink;
            proxy_read_timeout 3600s;  # the stream of a run's log
        }
    }
"""

REFUSAL = "Refused: this port serves only nodes (POST /v1/fleet/...)."
REPLACED = "Refused: this certificate of the operator was replaced by a newer one."
UNSIGNED = "Refused: a request without a node's signature."
OPERATOR_REFUSAL = "Refused: this port serves only the operator (POST /v1/control/...)."


def nginx_conf(deployment: Deployment, operator_serial: str = "") -> str:
    """Return the configuration of nginx for a deployment; paths are relative to its folder (``nginx -p``).

    Args:
        operator_serial: serial number of the operator's certificate, hexadecimal; needed with
            ``ports.operator``.
    """
    ports = deployment.ports
    values = {
        "piece": _PIECE,
        "tree": _TREE,
        "other": _OTHER,
        "operators": _OPERATORS,
        "worker_connections": _CONNECTIONS,
        "connections": deployment.port_limits.connections,
        "pushes": deployment.port_limits.pushes,
        "requests": deployment.port_limits.requests,
        "burst": 4 * deployment.port_limits.requests,
        "unsigned": UNSIGNED,
        "listen_nodes": _listen(deployment, ports.nodes),
        "superlink": ports.superlink,
        "listen_operator": _listen(deployment, ports.operator),
        "refusal": REFUSAL,
        "operator_refusal": OPERATOR_REFUSAL,
        "serial": operator_serial,
        "replaced": REPLACED,
    }
    parts = [_HEAD, _NODES] + ([_OPERATOR] if ports.operator else [])
    return "".join(part % values for part in parts) + "}\n"


def most_memory(deployment: Deployment) -> int:
    """Return the bytes of requests that callers without a valid signature can have in SuperLink's memory at once, all
    together."""
    return deployment.port_limits.pushes * _PIECE + 2 * _CONNECTIONS * _OTHER


def _listen(deployment: Deployment, port: int) -> str:
    """Return the listen directives: IPv4 always, IPv6 if the server has such an address (some machines lack IPv6)."""
    lines = [f"listen {port} ssl;"]
    if any(":" in host for host in deployment.hosts):
        lines.append(f"listen [::]:{port} ssl;")
    return " ".join(lines)
