"""Replies of nodes: who may speak for whom, and what the readers let in."""

from __future__ import annotations

from ..mutation import Mutation

_SILOS = "tests/server/test_expected_silos.py"
_HOSTILE = "tests/server/test_hostile_silo.py"
_FORGED = f"{_HOSTILE}::test_forged_replies_of_silos_are_refused_before_anything_changes[updates]"
_ARRAYS = f"{_HOSTILE}::test_arrays_are_read_as_numpy_reads_them"
_FAILURES = "tests/integration/test_run_failures.py"
_SPEAKS = f"{_SILOS}::test_a_node_that_speaks_for_another_silo_is_refused_and_the_run_goes_on"
_PULL = "tests/server/test_pull.py"

MUTATIONS = (
    Mutation(
        "node-speaks-for-any-silo",
        "server/nodes/discovery.py",
        "            check_identity(node, told.envelope)\n",
        "",
        "A registered node takes the place of another silo by giving its name.",
        (_SPEAKS,),
    ),
    Mutation(
        "unregistered-node-speaks-beside-registered-ones",
        "server/nodes/identities.py",
        "    return [node for node in nodes if node.name and names.count(node.name) == 1]\n",
        "    return nodes\n",
        "A node without a name, or a second one of a name, may be the silo.",
        (
            f"{_SILOS}::test_nodes_without_a_registered_name_speak_for_nobody_beside_registered_ones",
        ),
    ),
    Mutation(
        "excluded-silos-are-asked",
        "server/nodes/discovery.py",
        "        here = [node for node in nodes if node.name in wanted]\n",
        "        here = nodes\n",
        "Who is left out by name is sent the run's first question all the same.",
        (f"{_SILOS}::test_who_is_not_named_gets_no_task_though_there_first",),
    ),
    Mutation(
        "excluded-silos-train",
        "server/nodes/discovery.py",
        "        elif not wanted or name in wanted:\n",
        "        else:\n",
        "Who is left out by name trains all the same where nodes have no registered names.",
        (f"{_SILOS}::test_who_is_not_named_gets_no_task_though_there_first",),
    ),
    Mutation(
        "silos-of-no-run-are-asked",
        "server/run.py",
        '    return {name: node for name, node in nodes.items() if not saved or name in saved["silos"]}\n',
        "    return dict(nodes)\n",
        "A silo that a run was not planned with evaluates in it once it is resumed.",
        (f"{_SILOS}::test_a_silo_that_a_run_was_not_begun_with_gets_no_task",),
    ),
    Mutation(
        "run-without-training-is-finished",
        "server/strategy.py",
        "        self.trained = self.trained or bool(counted)\n",
        "        self.trained = True\n",
        "A run in which nobody trained says that it has finished.",
        (f"{_SILOS}::test_a_run_in_which_nobody_trained_fails_and_keeps_what_there_is",),
    ),
    Mutation(
        "noise-alone-is-training",
        "server/strategy.py",
        "        self.trained = self.trained or bool(counted)\n",
        "        self.trained = self.trained or bool(self.spending.mechanism)\n",
        "A run whose updates were all refused says that it has finished.",
        (f"{_SILOS}::test_a_run_in_which_every_update_was_refused_has_trained_nobody",),
    ),
    Mutation(
        "training-is-forgotten",
        "server/run.py",
        '    strategy.trained = bool(meta.get("trained", told))\n',
        "    strategy.trained = False\n",
        "A run that is resumed after its last round says that nobody trained.",
        (f"{_SILOS}::test_a_resumed_run_knows_that_it_trained",),
    ),
    Mutation(
        "reply-in-anothers-name",
        "server/replies/sorting.py",
        "            check_speaker(envelope, name)\n",
        "",
        "A silo answers a task in another silo's name.",
        (f"{_FAILURES}::test_unusable_replies_are_refused_by_name_and_the_round_goes_on",),
    ),
    Mutation(
        "answer-is-whose-it-says",
        "server/nodes/pull.py",
        "        return make_message(_metadata(row), content=inflated.content)\n",
        "        row.metadata.reply_to_message_id = inflated.metadata.reply_to_message_id\n"
        "        return make_message(_metadata(row), content=inflated.content)\n",
        "A node's answer counts as another node's, by its own word.",
        (f"{_PULL}::test_an_answer_is_of_the_node_whose_key_was_checked_whatever_it_says",),
    ),
    Mutation(
        "pieces-are-not-counted",
        "server/nodes/pull.py",
        "            total += sum(len(contents[children[piece]]) for piece in pieces)\n",
        "            total += len(pieces)\n",
        "An answer of 5 MB takes 50 GB of the server's memory.",
        (f"{_PULL}::test_built_bytes_count_each_piece_as_often_as_it_is_named",),
    ),
    Mutation(
        "hole-in-a-reader-ends-the-run",
        "server/nodes/pull.py",
        "        except Exception as error:  # of this answer alone, whatever a stranger has uploaded\n",
        "        except KeyError as error:\n",
        "An answer that is no message is waited for until the timeout, and its reason is not told.",
        (f"{_PULL}::test_an_answer_that_cannot_be_read_spoils_itself_alone",),
    ),
    Mutation(
        "truth-values-are-numbers",
        "server/replies/fields.py",
        "            number = isinstance(value, int | float) and not isinstance(value, bool)\n",
        "            number = isinstance(value, int | float)\n",
        "A truth value counts as a sampling rate of 1.",
        (_FORGED,),
    ),
    Mutation(
        "numbers-of-any-size",
        "server/replies/fields.py",
        "            if not number or not low <= value <= high:  # NaN is in no range\n",
        "            if not number:\n",
        "A rate of 2, noise of 1e-300 and NaN reach the accountants.",
        (_FORGED,),
    ),
    Mutation(
        "whole-numbers-of-any-size",
        "server/replies/fields.py",
        "not isinstance(value, int) or not low <= value <= high:",
        "not isinstance(value, int):",
        "10^15 steps reach the view of what was spent.",
        (_FORGED,),
    ),
    Mutation(
        "unknown-fields-pass",
        "server/replies/fields.py",
        "        if others := [name for name in self.values if name not in names]:\n",
        "        if others := []:\n",
        "A reply brings fields that nobody asked for, of any number and size.",
        (_FORGED,),
    ),
    Mutation(
        "unknown-records-pass",
        "server/replies/fields.py",
        "    if others := [name for name in content if name not in names]:\n",
        "    if others := []:\n",
        "A reply brings 20 MB of tensors that nobody asked for.",
        (_FORGED,),
    ),
    Mutation(
        "unknown-tensors-pass",
        "server/replies/arrays.py",
        "    if len(found) != len(spec) or any(name not in spec for name in found):\n",
        "    if any(name not in found for name in spec):\n",
        "An update brings tensors that no model has.",
        (_FORGED,),
    ),
    Mutation(
        "numbers-in-tensors-not-checked",
        "server/replies/arrays.py",
        "    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):\n",
        "    if False:\n",
        "NaN among the statistics or scores of one silo reaches what all are trained with.",
        (_ARRAYS,),
    ),
    Mutation(
        "header-of-an-array-not-compared",
        "server/replies/arrays.py",
        "    if told != shape:\n",
        "    if False:\n",
        "An array whose header tells another shape than its announcement is taken for the announced one.",
        (_FORGED,),
    ),
    Mutation(
        "stored-by-columns-read-by-rows",
        "server/replies/arrays.py",
        "    ordered = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)\n",
        "    ordered = flat.reshape(shape)\n",
        "An honest update that is stored by columns is read in another order.",
        (_ARRAYS,),
    ),
    Mutation(
        "refused-mechanism-is-told",
        "server/spending.py",
        "        if len(counts) > MOST_MECHANISMS:\n",
        "        if False:\n",
        "A silo that tells another mechanism each round makes the accountants slower and slower.",
        ("tests/server/test_spending_view.py::test_a_silo_tells_a_few_mechanisms_in_a_run",),
    ),
)
