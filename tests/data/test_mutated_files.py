"""A few mutated files of each format in this process; `make fuzz-readers` reads thousands, each in a process of its own."""

from __future__ import annotations

import random

import pytest

from benchmarks.fuzz_readers import READERS
from benchmarks.fuzzed_files import SAMPLES, files_of, mutated
from wmpo_ray.core.errors import UserError


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_as_a_whole_or_refused_in_one_line(tmp_path, name):
    sample = SAMPLES[name](tmp_path)
    READERS[name](sample)
    files, refused = {path: path.read_bytes() for path in files_of(sample)}, 0
    for number in range(40):
        path, good = list(files.items())[number % len(files)]
        path.write_bytes(mutated(good, random.Random(number)))
        try:
            READERS[name](sample)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(sample) in str(error)
        path.write_bytes(good)
    assert 5 < refused, "mutations hit what matters"


def test_mutations_are_the_same_for_the_same_seed(tmp_path):
    good = SAMPLES["rollout_tar"](tmp_path).read_bytes()
    one, again, other = (mutated(good, random.Random(seed)) for seed in (3, 3, 4))
    assert one == again != other and one != good
