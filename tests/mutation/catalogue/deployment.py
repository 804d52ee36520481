"""Who may reach what in a deployment."""

from __future__ import annotations

from ..mutation import Mutation

_PROXY = "server/deployment/proxy.py"
_NODES = "tests/deployment/test_proxy.py::test_nodes_reach_nothing_but_their_interface"
_OPERATOR = (
    "tests/deployment/test_proxy.py::test_the_operators_door_wants_the_operators_certificate"
)

MUTATIONS = (
    Mutation(
        "nodes-reach-the-control-interface",
        _PROXY,
        """        if ($request_uri !~ "^/v1/fleet/[a-z-]+$") { return 403 "%(refusal)s\\\\n"; }
""",
        "",
        "Any node, and anyone who reaches the port, may start code on all nodes.",
        (_NODES,),
    ),
    Mutation(
        "nodes-reach-it-by-another-spelling",
        _PROXY,
        """        if ($request_uri !~ "^/v1/fleet/[a-z-]+$")""",
        """        if ($request_uri !~ "^/v1/fleet/")""",
        "A path with dots passes the check of its beginning.",
        (_NODES,),
    ),
    Mutation(
        "operators-door-open",
        _PROXY,
        "        ssl_verify_client on;\n",
        "        ssl_verify_client optional_no_ca;\n",
        "A certificate of any authority passes the handshake.",
        (_OPERATOR,),
    ),
    Mutation(
        "operators-old-certificate-passes",
        _PROXY,
        """        if ($ssl_client_serial != "%(serial)s") { return 403 "%(replaced)s\\\\n"; }
""",
        "",
        "A stolen certificate cannot be taken out of use.",
        (_OPERATOR,),
    ),
    Mutation(
        "private-keys-for-all",
        "server/deployment/certificates.py",
        "os.O_EXCL, 0o600)",
        "os.O_EXCL, 0o644)",
        "Every account of the machine can read the authority's and the nodes' keys.",
        ("tests/deployment/test_certificates.py::test_private_keys_are_their_owners_alone",),
    ),
    Mutation(
        "server-certificate-may-call",
        "server/deployment/certificates.py",
        "    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH\n",
        "    purpose = ExtendedKeyUsageOID.CLIENT_AUTH\n",
        "The server's certificate opens the operator's door (and serves nobody).",
        ("tests/deployment/test_certificates.py::test_names_and_purpose",),
    ),
    Mutation(
        "superlink-on-all-addresses",
        "server/deployment/programs.py",
        """        *("--host", "127.0.0.1", "--port", str(deployment.ports.superlink)),
""",
        """        *("--host", "0.0.0.0", "--port", str(deployment.ports.superlink)),
""",
        "The control interface is reached past the proxy.",
        ("tests/deployment/test_folder.py::test_unit_files_can_be_read",),
    ),
    Mutation(
        "missing-silos-ignored",
        "server/nodes/discovery.py",
        "        missing = sorted(set(wanted) - _answered(found, named))\n",
        "        missing: list[str] = []\n",
        "A run begins without a silo that it was told to wait for.",
        ("tests/server/test_expected_silos.py::test_who_is_missing_is_named",),
    ),
)
