"""Penalties in two processes: the losses and the weights of one process with the joint batch."""

import pytest

from tests.several import run


@pytest.mark.slow
def test_shared_by_ddp_and_fully_shard_they_are_those_of_the_joint_batch():
    run("check", module="tests.methods.sharing")
