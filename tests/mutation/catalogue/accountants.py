"""Events, accountants and calibration."""

from __future__ import annotations

from ..mutation import Mutation

_ACCOUNTANTS = "tests/privacy/accountants/test_accountants.py"
_ORACLES = "tests/privacy/test_oracles.py"
_TABLE = f"{_ORACLES}::test_reference_table"
_EXACT = f"{_ORACLES}::test_no_bound_is_below_the_exact_delta"
_DOMINATING = "tests/privacy/accountants/test_dominating.py"
_CALIBRATION = "tests/privacy/test_calibration.py"
_EVENTS = "tests/privacy/events/test_events.py"
_REPLACE = "test_replace_one_doubles_the_sensitivity_of_a_gaussian"
_FOLDER = "privacy/accountants/"

MUTATIONS = (
    Mutation(
        "no-guarantee-dropped-in-composition",
        "privacy/events/multiset.py",
        "if count == 0 or isinstance(event, dp.NoOpDpEvent):",
        "if count == 0 or isinstance(event, dp.NoOpDpEvent | dp.NonPrivateDpEvent):",
        "A release without privacy vanishes from the sum: a finite epsilon is reported for data that "
        "was shown bare.",
        (f"{_ACCOUNTANTS}::TestPld::test_no_guarantee_is_infinite", _ACCOUNTANTS),
    ),
    Mutation(
        "no-guarantee-skipped-by-accountants",
        f"{_FOLDER}base.py",
        "        if not flat or delta == 1:\n",
        "        flat = Counter({e: n for e, n in flat.items() if is_private(e)})\n"
        "        if not flat or delta == 1:\n",
        "Accountants leave out what they have no number for: epsilon of the rest passes for the whole.",
        (_ACCOUNTANTS,),
    ),
    Mutation(
        "no-noise-counts-as-private",
        "privacy/events/multiset.py",
        "return bool(event.noise_multiplier > 0)",
        "return bool(event.noise_multiplier >= 0)",
        "A Gaussian mechanism without noise passes for a private one.",
        (_EVENTS, _ACCOUNTANTS, "tests/fedllm/report/test_report.py"),
    ),
    Mutation(
        "repetitions-forgotten",
        "privacy/events/multiset.py",
        "_add(event.event, event.count * count, into)",
        "_add(event.event, event.count, into)",
        "A composition within a composition is counted once: an accountant that starts anew each "
        "round, in effect.",
        (f"{_EVENTS}::test_multiset_counts_leaves",),
    ),
    Mutation(
        "replace-one-as-add-or-remove-by-gdp",
        f"{_FOLDER}gdp.py",
        "return 2.0 if relation.doubles else 1.0",
        "return 1.0",
        "Replacing a record is accounted as removing it: half the true mu.",
        (f"{_ACCOUNTANTS}::TestGdpExact::{_REPLACE}",),
    ),
    Mutation(
        "replace-one-as-add-or-remove-by-rdp",
        f"{_FOLDER}rdp.py",
        "        event = _halved(event)\n",
        "        pass\n",
        "Replacing a record is accounted as removing it by the RDP accountant.",
        (f"{_ACCOUNTANTS}::TestRdp::{_REPLACE}",),
    ),
    Mutation(
        "replace-one-as-add-or-remove-by-pld",
        f"{_FOLDER}pld.py",
        "        return gaussian_losses(event.noise_multiplier, 1.0, replace, interval)\n",
        "        return gaussian_losses(event.noise_multiplier, 1.0, False, interval)\n",
        "Replacing a record is accounted as removing it in the headline.",
        (f"{_ACCOUNTANTS}::TestPld::{_REPLACE}",),
    ),
    Mutation(
        "rdp-at-half-the-rate",
        f"{_FOLDER}rdp.py",
        "    accountant.compose(event)\n",
        "    if isinstance(event, dp.PoissonSampledDpEvent):\n"
        "        event = dp.PoissonSampledDpEvent(event.sampling_probability / 2, event.event)\n"
        "    accountant.compose(event)\n",
        "RDP amplifies by a rate that the sampler does not have.",
        (_TABLE, _EXACT),
    ),
    Mutation(
        "rdp-without-allowance-for-round-off",
        f"{_FOLDER}rdp.py",
        "        values = values + _ROUND_OFF / (np.asarray(ORDERS) - 1)\n",
        "        values = values + 0.0\n",
        "Very many events at a tiny rate cost less by RDP than they do.",
        ("tests/privacy/accountants/test_rdp_round_off.py",),
    ),
    Mutation(
        "pld-optimistic",
        f"{_FOLDER}losses/gaussian.py",
        "    probs = np.append(mass - upper, 0.0)\n    probs[1:] += upper\n",
        "    probs = np.append(mass, 0.0)\n",
        "Losses are rounded down: the headline is an estimate that may be below the truth.",
        (_TABLE, _EXACT, _ORACLES),
    ),
    Mutation(
        "pld-of-the-better-direction",
        f"{_FOLDER}pld.py",
        "return max(d.epsilon(delta) for d in _composed(items, relation))",
        "return min(d.epsilon(delta) for d in _composed(items, relation))",
        "Only the cheaper of adding and removing is accounted: whoever was removed pays more.",
        (_TABLE, _ACCOUNTANTS),
    ),
    Mutation(
        "pld-drops-infinite-losses",
        f"{_FOLDER}losses/distribution.py",
        "infinity=TAIL_MASS - math.expm1(infinity_log),",
        "infinity=0.0,",
        "The mass at an infinite loss is forgotten: a delta that composition adds up is not reported.",
        ("tests/privacy/accountants/test_loss_distribution.py",),
    ),
    Mutation(
        "pld-without-allowance-for-round-off",
        f"{_FOLDER}losses/distribution.py",
        "    error = sum(count * part.error for part, count in parts) + total * _MACHINE_EPSILON\n",
        "    error = 0.0\n",
        "Deltas below the round-off of the convolution are promised though they were never computed.",
        (f"{_ACCOUNTANTS}::test_deltas_below_round_off_are_not_promised",),
    ),
    Mutation(
        "pld-rate-in-the-wrong-place",
        f"{_FOLDER}losses/gaussian.py",
        "mass = (1 - rate) * np.exp(zero) + rate * np.exp(one)",
        "mass = (1 - rate**2) * np.exp(zero) + rate**2 * np.exp(one)",
        "The mass of outputs is that of a smaller sampling rate.",
        (f"{_ACCOUNTANTS}::test_pld_agrees_with_dp_accountings_own_composition",),
    ),
    Mutation(
        "sampled-replace-one-as-add-or-remove-by-pld",
        f"{_FOLDER}pld.py",
        "        return gaussian_losses(noise, rate, replace, interval)\n",
        "        return gaussian_losses(noise, rate, False, interval)\n",
        "Replacing a sampled record is accounted as removing it in the headline.",
        (f"{_ORACLES}::test_replace_one_against_quadrature",),
    ),
    Mutation(
        "discrete-gaussian-accounted-at-double-sigma",
        f"{_FOLDER}pld.py",
        "discrete_gaussian_losses(event.sigma, shift, interval)",
        "discrete_gaussian_losses(2 * event.sigma, shift, interval)",
        "Whole numbers cost half of what they do.",
        (_ACCOUNTANTS, _ORACLES),
    ),
    Mutation(
        "amplification-after-composition",
        f"{_FOLDER}pld.py",
        "        return _epsilon(frozenset(events.items()), self.relation, delta)\n",
        "        rate = max(getattr(e, 'sampling_probability', 1.0) for e in events)\n"
        "        bare = Counter({getattr(e, 'event', e): n for e, n in events.items()})\n"
        "        whole = _epsilon(frozenset(bare.items()), self.relation, delta)\n"
        "        return math.log1p(rate * math.expm1(min(whole, 700.0)))\n",
        "log(1 + q (exp(eps) - 1)) of a composed epsilon: no theorem, and no bound.",
        (_TABLE,),
    ),
    Mutation(
        "clt-called-a-bound",
        f"{_FOLDER}gdp.py",
        "    is_bound = False\n",
        "    is_bound = True\n",
        "The central-limit approximation, up to 78 % too low, may be signed as a guarantee.",
        (f"{_ACCOUNTANTS}::TestGdpClt", "tests/privacy/test_budget.py::test_bad_budgets"),
    ),
    Mutation(
        "exact-mu-adds-up-linearly-too-low",
        f"{_FOLDER}gdp.py",
        "math.fsum(count / event.noise_multiplier**2 for event, count in events.items())",
        "math.fsum(1 / event.noise_multiplier**2 for event in events)",
        "A thousand equal releases cost as much as one.",
        (f"{_ACCOUNTANTS}::test_exact_gdp_is_root_sum_of_squares",),
    ),
    Mutation(
        "dominating-mu-without-margin",
        f"{_FOLDER}dominating_mu.py",
        "    while math.isfinite(mu) and not _covers(mu, epsilons, deltas):\n",
        "    while False:\n",
        "Mu fits a grid of points only: between them the Gaussian curve is below the true one.",
        (_DOMINATING,),
    ),
    Mutation(
        "dominating-mu-rounded-down",
        f"{_FOLDER}dominating_mu.py",
        "        mu *= 1 + step\n        step *= 2\n    return mu\n",
        "        mu *= 1 + step\n        step *= 2\n    return math.floor(mu * 1e3) / 1e3\n",
        "Mu is rounded down: its curve does not dominate.",
        (_DOMINATING,),
    ),
    Mutation(
        "dominating-mu-of-the-middle",
        f"{_FOLDER}dominating_mu.py",
        "epsilons = np.append(0.0, losses[(losses > 0) & (losses < end)])",
        "epsilons = np.append(0.0, losses[(losses > 0) & (losses < end / 2)])",
        "Mu is fitted to large deltas alone: small deltas, the ones that matter, are not covered.",
        (_DOMINATING,),
    ),
    Mutation(
        "calibration-from-the-unsafe-side",
        "privacy/calibration.py",
        "    return high, high_cost\n",
        "    return low, low_cost\n",
        "The noise found costs a little more than the target.",
        (f"{_CALIBRATION}::test_every_accountant_from_the_safe_side",),
    ),
    Mutation(
        "calibration-with-slack",
        "privacy/calibration.py",
        "GOAL = 1 - 1e-9",
        "GOAL = 1 + 1e-3",
        "Every calibrated run costs up to a thousandth more than its owner allowed.",
        (f"{_CALIBRATION}::test_every_accountant_from_the_safe_side",),
    ),
    Mutation(
        "one-step-too-many",
        "privacy/calibration.py",
        "return Calibration(noise_multiplier, cost(low), delta, accountant, sampling_rate, low)",
        "return Calibration(noise_multiplier, cost(low), delta, accountant, sampling_rate, high)",
        "The number of steps solved for exceeds the target by one.",
        (f"{_CALIBRATION}::test_steps_are_the_most_that_fit",),
    ),
    Mutation(
        "calibration-forgets-other-events",
        "privacy/calibration.py",
        "return others + _schedule(sampling_rate, multiplier, steps, copies)",
        "return _schedule(sampling_rate, multiplier, steps, copies)",
        "What was spent before on the same data is not made room for.",
        (f"{_CALIBRATION}::test_other_events_share_the_budget",),
    ),
    Mutation(
        "calibration-cache-blind-to-delta",
        "privacy/calibration.py",
        '        "delta": repr(float(delta)),\n',
        "",
        "A noise that was found for another delta is taken from the cache.",
        (f"{_CALIBRATION}::test_cache_saves_the_work_and_is_keyed_by_every_input",),
    ),
    Mutation(
        "printed-epsilon-rounded-down-in-words",
        "privacy/guarantee.py",
        "shown = math.ceil(self.epsilon * 1000 - 1e-9) / 1000",
        "shown = math.floor(self.epsilon * 1000) / 1000",
        "The epsilon that is signed is smaller than the one that was spent.",
        ("tests/privacy/test_vocabulary.py::test_printed_epsilon_is_rounded_up",),
    ),
    Mutation(
        "stronger-adversary-as-weaker",
        "privacy/guarantee.py",
        'return _KINDS[self.partition(":")[0]], self.colluders',
        'return _KINDS[self.partition(":")[0]], 0',
        "Colluders are given the server's view, although they know their own noise.",
        ("tests/privacy/ledger/test_ledger.py", "tests/privacy/test_vocabulary.py"),
    ),
)
