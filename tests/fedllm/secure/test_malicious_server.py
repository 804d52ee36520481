"""A server that follows no rule learns one sum of at least N - `most_missing` honest silos, and of a vector nothing else.

Most tests have two halves: what the server asks is refused or worthless, and the same computation with a secret that only the test has
gives the vector, so that it would have been noticed.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from scipy import stats
from secure_sums import Knowing, Silos, plain_sum, refused

from fedllm.report.extract.keys import EXTRACT, SUM, SigningKey
from fedllm.secure import keys, masks, packets, session
from fedllm.secure.member import Member
from fedllm.secure.messages import Opening
from fedllm.secure.roster import Introduction, Roster
from fedllm.secure.signing import signer, verifier
from fedllm.secure.sums import Sums
from privacy.secure_sum.shares import honest_shares, most_missing


def honest_until_open(silos, gone=()):
    """All silos are told the same and masked session 1: what the server then has."""
    advances = silos.advances(1)
    server, vectors = Knowing(silos, 1, advances), silos.vectors()
    for name in silos.names:
        if name not in gone:
            server.mask(name, silos.names, vectors[name])
    return server, vectors


def less_the_self_mask(server, name, value):
    """What is left when the test takes the self-mask away, by the secret that the server lacks."""
    agreed_on = session.agreement(server.roster, 1, server.context, server.told[name])
    found = value.copy()
    masks.add_mask(found, session.self_seed(server.secrets(name).seed, agreed_on, name), -1)
    return found


def test_a_drop_out_that_answered_stays_masked(tmp_path):
    """The server holds all five vectors and claims that one dropped: it learns the sum of four, and that one's pairwise masks."""
    silos = Silos(tmp_path, 5, 1)
    server, vectors = honest_until_open(silos)
    late, rest = silos.names[0], silos.names[1:]
    for name in silos.names:
        server.open(name, rest)
    told = tuple(silos.names)
    assert (server.unmasked(told, rest) == plain_sum(vectors, rest)).all()
    assert server.secret("key", late) is not None
    assert server.secret("seed", late) is None
    left = server.unmasked(told, [late])  # all pairwise masks are gone
    assert not (left == vectors[late]).any()
    assert (less_the_self_mask(server, late, left) == vectors[late]).all()
    for name in silos.names:  # and nobody opens a second time
        assert "did not open" in refused(silos.members[name].open, 1, silos.names)


def test_both_secrets_of_a_silo_are_never_opened(tmp_path):
    silos = Silos(tmp_path, 7, 3)
    server, _ = honest_until_open(silos)
    lists = [silos.names[:4], silos.names[3:], silos.names[1:6], silos.names]
    for name, listed in zip(silos.names, lists * 2, strict=False):
        opening = silos.members[name].open(1, listed)
        assert set(opening.seeds) == set(listed)
        assert set(opening.keys) == set(silos.names) - set(listed)
        server.take(opening)
    for name in silos.names:
        assert None in (server.secret("key", name), server.secret("seed", name))


def test_fewer_than_the_threshold_open_nothing(tmp_path):
    silos = Silos(tmp_path, 6, 2)
    server, vectors = honest_until_open(silos)
    for name in silos.names:
        assert "at least 4" in refused(silos.members[name].open, 1, silos.names[:3])
    for name in silos.names[:3]:
        server.open(name, silos.names)
    assert {server.secret("seed", name) for name in silos.names} == {None}
    server.open(silos.names[3], silos.names)
    assert (
        server.unmasked(tuple(silos.names), silos.names) == plain_sum(vectors, silos.names)
    ).all()


def sets_of_the_bound(n, t, m):
    """(told, answered) by honest silo, with which the server leaves out most silos; and the silos in the sum it learns.

    As in the proof of `most_missing`: e silos outside A, and x silos whose key is opened; colluding silos are the last m.
    """
    honest = n - m
    places = range(honest)
    missing = most_missing(n, t, m)
    for e in range(t + 1):
        x = missing - e
        free = (honest - missing) * min(x, t - e) + missing * min(x, t)
        if x >= 0 and x * (honest - t) <= free:
            break
    keyless = list(range(e, e + x))
    inside = list(range(missing, honest))
    sets, dealt = {}, 0
    for place in places:
        among = set(range(e, n)) if place in inside else set(range(n))
        room = min(x, t - e if place in inside else t)
        dropped = {keyless[(dealt + i) % x] for i in range(room)} if x else set()
        dealt += room
        sets[place] = (among, among - dropped)
    return sets, inside


@pytest.mark.parametrize(
    ("n", "t", "m"), [(3, 1, 0), (4, 1, 0), (5, 1, 1), (5, 2, 0), (7, 2, 0), (8, 2, 1), (8, 3, 0), (10, 3, 0), (9, 2, 2)]
)  # fmt: skip
def test_the_bound_on_honest_silos_is_attained(tmp_path, n, t, m):
    """Different lists for different silos: the server learns the sum of exactly `honest_shares` honest silos."""
    silos = Silos(tmp_path, n, t, m)
    server, vectors = Knowing(silos, 1, silos.advances(1)), silos.vectors()
    sets, inside = sets_of_the_bound(n, t, m)
    named = {place: [silos.names[i] for i in sorted(sets[place][0])] for place in sets}
    for place in sets:
        server.mask(silos.names[place], named[place], vectors[silos.names[place]])
    for place in sets:
        server.open(silos.names[place], [silos.names[i] for i in sets[place][1]])
    for name in silos.names[n - m :]:
        server.collude(name)
    group = [silos.names[place] for place in inside]
    assert len(group) == honest_shares(n, t, m)
    told = server.told[group[0]]
    learned = server.unmasked(told, group)
    for name in group:  # the pairwise masks of colluding silos are known to them
        agreed_on = session.agreement(server.roster, 1, "round", told)
        for peer in silos.names[n - m :]:
            mine, theirs = server.advances[name].key, server.advances[peer].key
            agreed = keys.agree(server.secrets(peer).key, mine)
            seed = session.pair_seed(agreed, agreed_on, (name, mine), (peer, theirs))
            if server.secret("key", peer) is None:
                masks.add_mask(learned, seed, -session.sign_of(name, peer))
    assert (learned == plain_sum(vectors, group)).all()


@pytest.mark.parametrize(("n", "t"), [(4, 1), (5, 2), (6, 2)])
def test_no_change_of_the_worst_lists_learns_a_smaller_sum(tmp_path, n, t):
    """The lists of the bound, changed at random at up to two silos; then runs of silos that were told the same are tried."""
    rng = random.Random(n)
    silos = Silos(tmp_path, n, t, dimension=2)
    vectors, learned = silos.vectors(), []
    for number in range(1, 7):
        server = Knowing(silos, number, silos.advances(number))
        sets, _ = sets_of_the_bound(n, t, 0)
        for place in rng.sample(range(n), min(2, number - 1)):
            outside = set(rng.sample(range(n), rng.randint(0, t))) - {place}
            told = set(range(n)) - outside
            sets[place] = (told, told - set(rng.sample(sorted(told), t - len(outside))))
        for place, name in enumerate(silos.names):
            server.mask(name, [silos.names[i] for i in sets[place][0]], vectors[name])
        for place, name in enumerate(silos.names):
            server.open(name, [silos.names[i] for i in sets[place][1]])
        for told in set(server.told.values()):
            same = [name for name in silos.names if server.told[name] == told]
            for size in range(1, len(same) + 1):
                for start in range(len(same)):
                    group = sorted(same[(start + i) % len(same)] for i in range(size))
                    if (server.unmasked(told, group) == plain_sum(vectors, group)).all():
                        learned.append(len(group))
    assert min(learned) == honest_shares(n, t, 0)


def test_packets_of_another_session_are_refused(tmp_path):
    silos = Silos(tmp_path, 4, 1)
    first = Sums(silos.roster, 1, "round", silos.advances(1)).packets_for("silo-000")
    member, vector = silos.members["silo-000"], silos.vectors()["silo-000"]
    assert "in session 2" in refused(member.mask, 2, first, vector, "round")
    second = Sums(silos.roster, 2, "round", silos.advances(2)).packets_for("silo-000")
    mixed = second | {"silo-001": first["silo-001"]}
    assert "silo-001" in refused(member.mask, 2, mixed, vector, "round")


def test_a_repeated_round_under_a_new_session_has_other_masks(tmp_path):
    for t in (0, 1):
        silos = Silos(tmp_path / str(t), 4, t)
        vectors = silos.vectors()
        one, two = (honest_session(silos, number, vectors)["silo-000"] for number in (1, 2))
        assert not (one == two).any()


def honest_session(silos, number, vectors, contexts=None):
    """The masked vectors of a session, with a context for each silo."""
    sums = Sums(silos.roster, number, "round", silos.advances(number))
    return {
        name: silos.members[name].mask(
            number, sums.packets_for(name), vectors[name], (contexts or {}).get(name, "round")
        )
        for name in silos.names
    }


@pytest.mark.parametrize("n", [2, 3, 5])
def test_without_drop_outs_no_part_of_the_sum_is_known(tmp_path, n):
    silos = Silos(tmp_path, n)
    vectors = silos.vectors()
    masked = honest_session(silos, 1, vectors)
    for chosen in range(1, 2**n):
        group = [name for place, name in enumerate(silos.names) if chosen >> place & 1]
        same = plain_sum(masked, group) == plain_sum(vectors, group)
        assert same.all() if len(group) == n else not same.any()


@pytest.mark.parametrize("t", [0, 1])
def test_different_contexts_cancel_nothing(tmp_path, t):
    silos = Silos(tmp_path, 4, t)
    vectors = silos.vectors()
    masked = honest_session(silos, 1, vectors, {"silo-002": "another model"})
    total = plain_sum(masked, silos.names)
    if t:  # without the self-masks, by secrets that only the test has
        server = Knowing(silos, 1, [])
        for name in silos.names:
            server.told[name] = tuple(silos.names)
            server.context = "another model" if name == "silo-002" else "round"
            total = less_the_self_mask(server, name, total)
    assert not (total == plain_sum(vectors, silos.names)).any()


def test_different_lists_of_advances_cancel_nothing(tmp_path):
    """One silo is told of four, the others of five. All self-masks of the four and the key of the fifth are known: no sum follows."""
    silos = Silos(tmp_path, 5, 1)
    server, vectors = Knowing(silos, 1, silos.advances(1)), silos.vectors()
    four = silos.names[:4]
    for name in silos.names:
        server.mask(name, four if name == four[0] else silos.names, vectors[name])
    for name in silos.names:
        server.open(name, four)
    assert server.secret("key", silos.names[4]) is not None
    assert all(server.secret("seed", name) is not None for name in four)
    total = server.unmasked(server.told[four[0]], four[:1])
    total += server.unmasked(server.told[four[1]], four[1:])
    for group in (four, four[1:], silos.names):
        assert not (total == plain_sum(vectors, group)).any()


@pytest.mark.parametrize("t", [0, 1])
def test_silos_with_different_rosters_share_no_masks(tmp_path, t):
    """The server tells one silo another noise multiplier: packets are refused, and without packets nothing cancels."""
    plan = {"drop_outs": t, "colluding": 0, "bits": 64, "dimension": 5}
    members = fresh_members(tmp_path, 4)
    said = [member.introduce() for member in members]
    for member, noise in zip(members, (0.5, 2.0, 2.0, 2.0), strict=True):
        member.join(Roster.make(said, noise_multiplier=noise, **plan))
    vectors = {m.name: np.arange(5, dtype=np.uint64) for m in members}
    if t:
        sent = {member.name: member.advance(1).packets for member in members}
        for member in members:
            got = {peer: sent[peer][member.name] for peer in sent if peer != member.name}
            text = refused(member.mask, 1, got, vectors[member.name], "round")
            assert "of this roster" in text
        return
    masked = {m.name: m.mask(1, {}, vectors[m.name], "round") for m in members}
    assert not (plain_sum(masked, masked) == plain_sum(vectors, vectors)).any()


def fresh_members(folder, n, signs=None, verify=None):
    """Silos that joined nothing."""
    names = [f"silo-{place:03d}" for place in range(n)]
    return [Member(name, "run-1", folder / name, (signs or {}).get(name), verify) for name in names]


PLAN = {"drop_outs": 0, "colluding": 0, "bits": 64, "noise_multiplier": 1.0, "dimension": 5}


@pytest.fixture(scope="module")
def node_keys():
    return {f"silo-{i:03d}": SigningKey(ec.generate_private_key(ec.SECP384R1())) for i in range(3)}


def in_the_middle(members, victim):
    """A roster for the victim in which every other silo's key is the server's own; and these private keys."""
    said = {member.name: member.introduce() for member in members}
    private = {name: keys.digest("server", name) for name in said if name != victim}
    forged = [
        one if name == victim else replace(one, key=keys.public_key(private[name]))
        for name, one in said.items()
    ]
    return Roster.make(forged, **PLAN), private


def test_swapped_keys_are_refused_by_pinned_keys(tmp_path, node_keys):
    signs = {name: signer(key) for name, key in node_keys.items()}
    pins = {name: key.public for name, key in node_keys.items()}
    Silos(tmp_path / "honest", 3, signs=signs, verify=verifier(pins))  # all join
    members = fresh_members(tmp_path, 3, signs, verifier(pins))
    forged, _ = in_the_middle(members, "silo-000")
    assert "signed by the key pinned" in refused(members[0].join, forged)
    said = [member.introduce() for member in members]
    lies = {
        "no signature": replace(said[1], signature=""),
        "another silo's": replace(said[1], signature=said[2].signature),
        "of another key": replace(said[1], key=keys.public_key(bytes(32))),
        "of another kind": replace(
            said[1], signature=node_keys["silo-001"].sign(EXTRACT, said[1].signed_text)
        ),
        "of another run": replace(
            said[1],
            signature=node_keys["silo-001"].sign(SUM, replace(said[1], run="run-0").signed_text),
        ),
    }
    for lie in lies.values():
        assert "silo-001" in refused(members[0].join, Roster.make([said[0], lie, said[2]], **PLAN))
    unknown = fresh_members(tmp_path, 1, None, verifier({"silo-001": pins["silo-001"]}))
    assert "silo-002" in refused(unknown[0].join, Roster.make(said, **PLAN))
    members[0].join(Roster.make(said, **PLAN))


def test_without_pinned_keys_a_server_in_the_middle_reads_a_vector(tmp_path):
    """The assumption that reports must state: without pins the server is trusted to relay keys."""
    members = fresh_members(tmp_path, 3)
    forged, private = in_the_middle(members, "silo-000")
    members[0].join(forged)
    vector = np.arange(5, dtype=np.uint64)
    found = members[0].mask(1, {}, vector, "round")
    agreed_on = session.agreement(forged, 1, "round", forged.names)
    mine = forged.member("silo-000").key
    for name, key in private.items():
        seed = session.pair_seed(
            keys.agree(key, mine), agreed_on, ("silo-000", mine), (name, forged.member(name).key)
        )
        masks.add_mask(found, seed, -session.sign_of("silo-000", name))
    assert (found == vector).all()


def test_an_introduction_of_small_order_gives_no_mask(tmp_path):
    """A key whose secret everybody knows is refused before anything is masked."""
    members = fresh_members(tmp_path, 3)
    said = [member.introduce() for member in members]
    weak = Introduction("run-1", "silo-001", b"\1" + bytes(31))
    members[0].join(Roster.make([said[0], weak, said[2]], **PLAN))
    assert "full order" in refused(members[0].mask, 1, {}, np.zeros(5, "uint64"), "round")
    assert members[0].introduce().session == 0


def test_a_silo_cannot_pass_off_shares_of_another(tmp_path):
    """A colluding silo's packets under another's name: the key of a pair of silos is needed."""
    silos = Silos(tmp_path, 4, 1)
    sums = Sums(silos.roster, 1, "round", silos.advances(1))
    member, right = silos.members["silo-000"], sums.packets_for("silo-000")
    master = silos.members["silo-003"]._record.read().master
    agreed = keys.agree(
        session.long_term_key(master, "run-1", "silo-003"), silos.roster.member("silo-000").key
    )
    text = packets.packed(bytes(32), bytes(33), bytes(33))
    forged = packets.seal(agreed, silos.roster.digest, 1, "silo-001", "silo-000", text)
    vector = silos.vectors()["silo-000"]
    got = refused(member.mask, 1, right | {"silo-001": forged}, vector, "round")
    assert "packet of silo 'silo-001'" in got


def test_a_masked_vector_is_uniform(tmp_path):
    """Of a constant vector, the masked bytes have the distribution of random ones (chi-square, p > 1e-6)."""
    for t in (0, 1):
        silos = Silos(tmp_path / str(t), 4, t, dimension=20_000)
        vectors = {name: np.full(20_000, 7, "uint64") for name in silos.names}
        for masked in honest_session(silos, 1, vectors).values():
            counts = np.bincount(np.frombuffer(masked.tobytes(), np.uint8), minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6


def test_an_opening_names_whom_it_is_for(tmp_path):
    silos = Silos(tmp_path, 3, 1)
    honest_until_open(silos)
    opening = silos.members["silo-001"].open(1, silos.names)
    assert isinstance(opening, Opening)
    assert (opening.name, opening.session, dict(opening.keys)) == ("silo-001", 1, {})
