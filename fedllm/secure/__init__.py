"""Secure sums: a server learns the sum of silos' integer vectors, and of each vector nothing else.

After Bonawitz et al. 2017 (Practical Secure Aggregation for Privacy-Preserving Machine Learning), with masks modulo 2^32 or 2^64. A run has
one roster of n silos (:mod:`fedllm.secure.roster`): their X25519 keys, signed by their nodes' keys, and the plan. Each sum is a *session*
with a number that only grows. :class:`fedllm.secure.member.Member` is a silo's side, :class:`fedllm.secure.sums.Sums` the server's.

Without drop-outs (t = 0) a silo sends one message: its vector plus a mask for each peer, which the peer subtracts. The masks cancel in the
sum of all n and in nothing less; if one silo is missing, the sum is lost.

With t > 0 there are three messages a session.

1. *Advance*, before the round: a silo derives a key s and a self-mask's seed b for the session, shares both among all silos so that
   k = n - t restore them (Shamir), and seals the shares for each peer.
2. *Masked vector*: the vector, a mask for each peer that advanced (under both silos' s), and a self-mask (under b).
3. *Opening*: the server names the silos that answered. Each silo reveals its shares of their b, and of the others' s, once.

Why a second exchange in the round, also if nobody drops out: assume that the n masked vectors alone gave their sum, and that the sum of
n - 1 were opened after the n-th dropped out. A server that holds all n vectors and claims that one silo dropped out gets both sums from
silos that cannot tell, under one and the same noise. The difference is that silo's vector with its own share of the noise alone.

What a server learns that follows no rule and holds the secrets of m silos: every honest silo's vector is in one sum at most, and each such
sum has at least `privacy.secure_sum.shares.honest_shares` honest silos' vectors; all else is uniform. The proof is at
`privacy.secure_sum.shares.most_missing`. It needs of the silos what :class:`fedllm.secure.member.Member` does: mask a session once, open it
once, for at least k silos, never both secrets of one silo, and 2 t < n - m (:class:`fedllm.secure.roster.Roster`). The roster, the session, the
context and the list of advances are in the derivation of every mask, so nothing cancels between silos that were told different things.

Assumptions: X25519, HKDF-SHA256, AES-256-GCM, AES-256 in counter mode and SHA-256 are what they are said to be; the operating system's
entropy; at most m silos tell the server what they know. A silo without pinned keys of its peers (:mod:`fedllm.secure.signing`) also assumes
that the server relays the peers' own keys: otherwise the server can take every peer's part, and read its vector.

Not covered: a silo that sends a wrong vector spoils the sum, unnoticed, as it could with wrong data. A server can always refuse to finish.
There is no forward secrecy within a run: whoever reads a silo's record (:mod:`fedllm.secure.record`) and kept the run's messages learns this
silo's vectors under its own share of the noise.
"""
