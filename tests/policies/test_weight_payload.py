"""Laws of weights on their way: every kind of payload leads to the same bits, and a wrong one changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from actors.replica import Replica
from tests.support.weight_networks import TRAINED, Network, assert_identical, bits, disturb, encoder
from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.weight_changes import decode_changes, encode_changes
from wmpo_ray.policies.weight_exchange import UNKNOWN_VERSION, WeightEncoder, WeightReceiver
from wmpo_ray.policies.weight_payload import (
    WeightMismatchError,
    WeightPayload,
    WireTensor,
    array_specs,
    pack,
    unpack,
    weights_digest,
)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "bfloat16"]),
    only_trained=st.booleans(),
    updates=st.lists(st.tuples(st.integers(0, 2**31), st.sampled_from([0.0, 0.02, 0.3, 1.0])), min_size=1, max_size=6),
)
def test_full_adapter_and_delta_lead_to_the_same_bits(dtype, only_trained, updates):
    learner = Network()
    kinds = ["full", "delta", "adapter"] if only_trained else ["full", "delta"]
    encoders = {kind: encoder(learner, kind, dtype) for kind in kinds}
    replicas = {kind: Network() for kind in kinds}
    receivers = {kind: WeightReceiver(replica) for kind, replica in replicas.items()}
    for num_updates, (seed, share) in enumerate(updates):
        disturb(learner, seed, share, TRAINED | {"words.weight"} if only_trained else None)
        for kind in kinds:
            version, full, compact = encoders[kind].encode(num_updates)
            assert (compact is None) == (kind == "full" or (kind == "delta" and num_updates == 0))
            payload = compact or full
            assert payload.nbytes <= full.nbytes
            assert receivers[kind].load(payload) == version == receivers[kind].version
            assert_identical(replicas[kind], replicas["full"])
    if dtype == "float32":
        assert_identical(learner, replicas["full"])
    assert weights_digest(learner.state_dict(), dtype) == version.digest


def test_a_delta_is_written_where_torch_allows_only_deterministic_algorithms():
    learner, replica = Network(), Network()
    receiver = WeightReceiver(replica)
    encode = encoder(learner, "delta", "float32")
    torch.use_deterministic_algorithms(True)
    try:
        receiver.load(encode.encode(0)[1])
        disturb(learner, 1, 0.3)
        version, _, compact = encode.encode(1)
        assert compact is not None and receiver.load(compact) == version
    finally:
        torch.use_deterministic_algorithms(False)
    assert_identical(learner, replica)


def test_in_bfloat16_a_replica_in_float32_holds_the_rounded_values():
    learner, replica = Network(1), Network()
    _, full, _ = encoder(learner, dtype="bfloat16").encode(0)
    WeightReceiver(replica).load(full)
    assert replica.head.bias.dtype == torch.float32
    assert torch.equal(replica.head.bias, learner.head.bias.bfloat16().float())
    assert not torch.equal(replica.head.bias, learner.head.bias)
    assert full.nbytes < encoder(learner).encode(0)[1].nbytes


def test_a_learner_in_float32_and_a_replica_in_bfloat16_agree_on_the_digest():
    learner, replica = Network(1), Network().bfloat16()
    version, full, _ = encoder(learner, dtype="bfloat16").encode(4)
    assert WeightReceiver(replica).load(full) == version


def test_what_was_published_does_not_change_with_later_training():
    learner = Network()
    version, full, _ = encoder(learner, "delta").encode(0)
    kept = {name: tensor.bits.copy() for name, tensor in full.tensors.items()}
    disturb(learner, 1, 1.0)
    assert all(np.array_equal(full.tensors[name].bits, kept[name]) for name in kept)
    assert WeightReceiver(Network(5)).load(full) == version


def test_a_delta_holds_the_changed_elements_only():
    learner = nn.ModuleDict({"first": nn.Linear(40, 30), "second": nn.Linear(40, 30)})
    encode = WeightEncoder(learner, WeightsConfig(payload="delta", dtype="bfloat16"), ()).encode
    encode(0)
    with torch.no_grad():
        learner["first"].weight[2, 3] += 1
        learner["second"].weight[4, 5] += 1e-6  # too little for bfloat16
    (name,) = (delta := encode(1)[2]).tensors
    tensor = delta.tensors[name]
    assert name == "first.weight" and tensor.is_changes
    assert decode_changes(tensor.bits, 1200, 2).indices.tolist() == [2 * 40 + 3]
    assert not encode(2)[2].tensors


def test_a_tensor_with_two_names_is_changed_once():
    learner, replica = Network(), Network()
    encode, receiver = encoder(learner, "delta").encode, WeightReceiver(replica)
    receiver.load(encode(0)[1])
    with torch.no_grad():
        learner.words.weight[3, 2] *= 1.001
    version, _, delta = encode(1)
    assert {name for name, tensor in delta.tensors.items() if tensor.is_changes} == {"words.weight", "head.weight"}
    assert receiver.load(delta) == version
    assert_identical(learner, replica)


def test_a_description_in_another_format_is_refused():
    header, arrays = pack(encoder(Network()).encode(0)[1])
    with pytest.raises(WeightMismatchError, match="format 1 and this program reads 2"):
        array_specs({**header, "format": 1})
    assert len(array_specs(header)) == len(arrays)


def test_a_description_and_arrays_are_as_good_as_the_payload():
    learner, replicas = Network(2), (Network(), Network())
    encode = encoder(learner, "delta").encode
    for num_updates in range(3):
        disturb(learner, num_updates, 0.3)
        version, full, delta = encode(num_updates)
        header, arrays = pack(delta or full)
        assert array_specs(header) == [(array.dtype.name, len(array)) for array in arrays]
        if num_updates == 0:
            receivers = [WeightReceiver(replica) for replica in replicas]
        assert receivers[0].load(unpack(json.loads(json.dumps(header)), arrays)) == version
        assert receivers[1].load(delta or full) == version
        assert_identical(*replicas)


# -- digests -----------------------------------------------------------------------------------------------------------


def test_the_digest_changes_with_every_bit_name_and_shape():
    state = {"a": torch.zeros(2, 2), "b": torch.zeros(3, dtype=torch.int64)}
    others = [{**state, "a": torch.zeros(4)}, {**state, "b": torch.zeros(3, dtype=torch.int32)}]
    others += [{"a": state["a"], "c": state["b"]}, {"a": state["a"]}, {**state, "c": torch.zeros(0)}]
    for i in range(32):
        flipped = torch.zeros(4, dtype=torch.int32)
        flipped[i % 4] = torch.tensor(-(2**31) if i == 31 else 1 << i)
        others.append({**state, "a": flipped.view(torch.float32).view(2, 2)})
    digests = {weights_digest(other) for other in [state, *others]}
    assert len(digests) == len(others) + 1 and all(len(digest) == 16 for digest in digests)


@pytest.mark.parametrize("num_threads", [2, 5])
def test_the_digest_knows_neither_threads_nor_order(num_threads):
    state = {f"layer.{i}": torch.randn(50, 70, generator=torch.Generator().manual_seed(i)) for i in range(20)}
    backwards = dict(reversed(state.items()))
    assert weights_digest(backwards, "bfloat16", num_threads) == weights_digest(state, "bfloat16")


def test_a_replica_tells_what_it_holds_not_what_it_was_sent():
    version, full, _ = encoder(Network(1)).encode(3)
    damaged = dict(full.tensors)
    damaged["head.bias"] = replace(damaged["head.bias"], bits=damaged["head.bias"].bits ^ np.uint32(1))
    replica = Network()
    loaded = WeightReceiver(replica).load(replace(full, tensors=damaged))
    assert loaded.num_updates == 3 and loaded.digest != version.digest
    assert loaded.digest == weights_digest(replica.state_dict())


# -- what is refused ---------------------------------------------------------------------------------------------------


def with_tensor(payload: WeightPayload, **changes) -> WeightPayload:
    return replace(payload, tensors={**payload.tensors, **changes})


def with_bias(**changes):
    def damage(payload: WeightPayload) -> WeightPayload:
        return replace(
            payload, tensors={**payload.tensors, "head.bias": replace(payload.tensors["head.bias"], **changes)}
        )

    return damage


U16, U32 = np.uint16, np.uint32
DAMAGES = {
    "unknown name": lambda payload: with_tensor(payload, other=WireTensor("float32", (1,), np.zeros(1, U32))),
    "missing name": lambda payload: replace(payload, tensors={"scale": payload.tensors["scale"]}),
    "shape": with_bias(shape=(3, 2)),
    "dtype": with_bias(dtype="int32"),
    "too few values": with_bias(bits=np.zeros(5, U32)),
    "too wide values": with_bias(bits=np.zeros(6, np.uint64)),
    "changes of another length": with_bias(bits=encode_changes(np.zeros(7, U32), np.ones(7, U32)), is_changes=True),
    "changes of another width": with_bias(bits=encode_changes(np.zeros(6, U16), np.ones(6, U16)), is_changes=True),
    "changes in a full payload": with_bias(bits=encode_changes(np.zeros(6, U32), np.ones(6, U32)), is_changes=True),
    "values for changes": with_bias(bits=np.zeros(6, U32), is_changes=True),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_payload_that_does_not_fit_is_refused_before_anything_is_changed(damage):
    replica = Network()
    receiver = WeightReceiver(replica)
    version = receiver.load(encoder(Network()).encode(0)[1])
    with pytest.raises(WeightMismatchError):
        receiver.load(damage(encoder(Network(1)).encode(1)[1]))
    assert_identical(replica, Network())
    assert receiver.version == version


def test_a_delta_on_other_weights_is_refused_and_names_both():
    learner, replica = Network(), Network()
    encode, receiver = encoder(learner, "delta").encode, WeightReceiver(replica)
    first, full, _ = encode(0)
    disturb(learner, 1, 0.5)
    second, _, delta = encode(1)
    with pytest.raises(WeightMismatchError, match=rf"'{first.digest}'.*''"):
        receiver.load(delta)
    assert receiver.version == UNKNOWN_VERSION
    receiver.load(full)
    receiver.load(delta)
    before = {name: tensor.clone() for name, tensor in replica.state_dict().items()}
    with pytest.raises(WeightMismatchError, match=rf"'{first.digest}'.*'{second.digest}'"):
        receiver.load(delta)
    assert receiver.version == second
    for name, tensor in replica.state_dict().items():
        assert np.array_equal(bits(tensor), bits(before[name]))


def test_an_adapter_on_another_base_shows_in_the_digest():
    learner = Network()
    version, _, adapter = encoder(learner, "adapter").encode(1)
    assert adapter.tensors.keys() == {"words.weight", "head.weight", "scale"}
    assert WeightReceiver(Network(9)).load(adapter) != version


def test_weights_wider_than_a_replica_are_refused_with_the_setting():
    _, full, _ = encoder(Network()).encode(0)
    with pytest.raises(WeightMismatchError, match=r"weights\.dtype=float32"):
        WeightReceiver(Network().bfloat16()).load(full)


def test_an_adapter_without_trained_parameters_is_a_mistake_in_the_config():
    with pytest.raises(ConfigError, match=r"grpo\.trained_parameters"):
        WeightEncoder(Network(), WeightsConfig(payload="adapter"), {"lora_a"})


def test_a_compact_payload_that_does_not_exist_asks_for_the_full_one():
    replica = Replica(Network())
    with pytest.raises(WeightMismatchError, match="full"):
        replica.load_weights(None)
    assert replica.version == WeightVersion(-1, "")
