"""Two processes over gloo: an error in the first must not leave the other one waiting."""

import pytest

from tests.several import run


@pytest.mark.parametrize("kind", ["known", "local", "unpicklable result"])
def test_an_error_in_the_main_process_is_raised_in_all(kind):
    run("fail_in_main", kind, module="tests.utils.collectives", timeout=25)


@pytest.mark.parametrize("name", ["node", "main"])
def test_an_error_in_the_first_process_is_raised_in_all(name):
    run("fail_before_the_others", name, module="tests.utils.collectives", timeout=25)
