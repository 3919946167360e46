"""Steps that go ahead are exact: what a replica holds in the end is the version, and until then it is what it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.weight_networks import Network, assert_identical, disturb, encoder
from wmpo_ray.policies.weight_exchange import WeightReceiver
from wmpo_ray.policies.weight_payload import WeightMismatchError, WireTensor


def started(dtype: str = "float32"):
    """A learner's network and encoder, and a replica's network and receiver, which holds version 0."""
    learner, replica = Network(), Network()
    encode, receiver = encoder(learner, "delta", dtype), WeightReceiver(replica)
    receiver.load(encode.encode(0)[1])
    return learner, encode, replica, receiver


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "bfloat16"]),
    updates=st.lists(st.lists(st.sampled_from([0.0, 0.02, 0.3, 1.0]), max_size=3), min_size=1, max_size=3),
)
def test_the_last_step_makes_a_version_of_those_before_it(dtype, updates):
    learner, encode, replica, receiver = started(dtype)
    plain = Network()
    other = WeightReceiver(plain)
    other.load(encode.encode(0)[1])
    for number, shares in enumerate(updates, start=1):
        held, before = receiver.version, {k: v.clone() for k, v in replica.state_dict().items()}
        for step, share in enumerate(shares):
            disturb(learner, 100 * number + step, share)
            assert receiver.stage(encode.encode_step()) == encode._step.version.digest
        assert receiver.version == held and all(
            v.equal(before[k]) or v.isnan().any() for k, v in replica.state_dict().items()
        )
        disturb(learner, 100 * number + 99, 0.3)
        version, _, compact = encode.encode(number)
        assert encode.last is None or encode.last.nbytes < compact.nbytes
        assert receiver.load(encode.last or compact) == other.load(compact) == version
        assert_identical(replica, plain)


def test_a_replica_that_missed_a_step_says_so_and_takes_the_delta_of_the_update():
    learner, encode, replica, receiver = started()
    steps = []
    for seed in range(3):
        disturb(learner, seed, 0.1)
        steps.append(encode.encode_step())
    assert receiver.stage(steps[1]) == "", "it has nothing that the second step follows"
    first = receiver.stage(steps[0])
    assert receiver.stage(steps[2]) == first == steps[0].version.digest
    disturb(learner, 4, 0.01)
    version, _, compact = encode.encode(1)
    with pytest.raises(WeightMismatchError, match="starts from"):
        receiver.load(encode.last)
    assert receiver.load(compact) == version
    assert_identical(replica, learner)


def test_a_step_that_came_twice_is_the_step_that_came_once():
    learner, encode, replica, receiver = started()
    for seed in range(2):
        disturb(learner, seed, 0.2)
        step = encode.encode_step()
        assert receiver.stage(step) == receiver.stage(step) == step.version.digest
    disturb(learner, 3, 0.01)
    version, _, _ = encode.encode(1)
    assert receiver.load(encode.last) == version
    assert_identical(replica, learner)


def test_whoever_evaluates_other_weights_meanwhile_keeps_what_is_staged():
    learner, encode, replica, receiver = started()
    disturb(learner, 1, 0.2)
    receiver.stage(encode.encode_step())
    with receiver.borrowed():
        receiver.load(encoder(Network(3)).encode(7)[1])
        disturb(learner, 2, 0.2)
        assert receiver.stage(encode.encode_step()) == "", "it holds other weights than the step starts from"
    assert_identical(replica, Network())
    disturb(learner, 3, 0.01)
    version, _, compact = encode.encode(1)
    assert receiver.load(compact) == version


def test_damaged_steps_are_refused_and_the_replica_stays_as_it_is():
    learner, encode, replica, receiver = started()
    disturb(learner, 1, 0.3)
    step = encode.encode_step()
    name = next(name for name, tensor in step.tensors.items() if tensor.is_changes)
    tensor = step.tensors[name]
    damages = [
        {name: replace(tensor, bits=tensor.bits[:-1])},
        {name: replace(tensor, shape=(3, *tensor.shape))},
        {name: WireTensor(tensor.dtype, tensor.shape, np.zeros(3, np.uint32))},
        {"unknown": tensor},
    ]
    for tensors in damages:
        with pytest.raises(WeightMismatchError, match="of a step"):
            receiver.stage(replace(step, tensors=tensors))
        assert_identical(replica, Network())
    assert receiver.stage(step) == step.version.digest, "a whole one is taken all the same"
