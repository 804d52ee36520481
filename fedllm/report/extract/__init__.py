"""Signed extracts of silos' ledgers: made at a silo, kept by the server, composed into a run's report.

In a deployment each silo keeps its ledger. What the report needs of it travels as an extract
(:mod:`fedllm.report.extract.statement`), signed with the node's key (:mod:`fedllm.report.extract.keys`). An extract is the
silo's word: the signature proves who said it, not that the silo did what it says.
"""
