"""What libraries say: bars and what is no news are left out, everything else is shown once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from align import quiet


@pytest.fixture
def quieted() -> Iterator[None]:
    """What `quiet_libraries` changes, but for warnings, which pytest puts back."""
    names = [name for name, _ in quiet.NO_NEWS]
    filters = {name: list(logging.getLogger(name).filters) for name in names}
    last = logging.lastResort
    assert last is not None
    before = list(last.filters)
    quiet._once.said.clear()
    quiet.quiet_libraries()
    yield
    last.filters[:] = before
    for name, found in filters.items():
        logging.getLogger(name).filters[:] = found


def shown(name: str, message: str) -> bool:
    """Whether a warning would reach standard error where nobody has set up logging."""
    logger = logging.getLogger(name)
    record = logger.makeRecord(name, logging.WARNING, "file", 1, message, (), None)
    assert logging.lastResort is not None
    return bool(logger.filter(record)) and bool(logging.lastResort.filter(record))


@pytest.mark.usefixtures("quieted")
def test_what_is_no_news_is_left_out_and_the_rest_is_not():
    tokens = "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config"
    assert not shown("transformers.trainer_utils", tokens)
    assert shown("transformers.modeling_utils", tokens)
    assert shown("transformers.trainer_utils", "Something else")


@pytest.mark.usefixtures("quieted")
def test_a_library_says_a_thing_once_and_the_run_as_often_as_it_is_so():
    assert [shown("peft", "Some weights are odd") for _ in range(3)] == [True, False, False]
    assert shown("peft", "Other weights are odd")
    assert [shown("align.pipeline", "dpo: 37 judgements") for _ in range(2)] == [True, True]


@pytest.mark.usefixtures("quieted")
def test_warnings_of_old_names_are_ignored_and_others_are_not():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for category, message in quiet.IGNORED:
            warnings.filterwarnings("ignore", message=message, category=category)
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("`torch.distributed.all_x` is deprecated.", FutureWarning, stacklevel=1)
        warnings.warn("fan_in_fan_out is a matter of taste", UserWarning, stacklevel=1)
    assert [str(one.message) for one in found] == ["fan_in_fan_out is a matter of taste"]


def test_debug_leaves_the_libraries_as_they_are():
    quiet.show_everything(True)
    try:
        before = list(logging.getLogger("transformers.trainer_utils").filters)
        quiet.quiet_libraries()
        assert logging.getLogger("transformers.trainer_utils").filters == before
    finally:
        quiet.show_everything(False)
