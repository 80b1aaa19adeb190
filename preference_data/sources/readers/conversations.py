"""Two whole conversations that share a beginning: the shared turns are the prompt."""

from __future__ import annotations

from preference_data.quarantine import RowFault
from preference_data.records import Message, Prompt, Response

Turns = tuple[Message, ...]


def compare(chosen: Turns, rejected: Turns) -> tuple[Prompt, Response, Response]:
    """The common turns as the prompt, and what follows in each as the responses.

    Whole turns, not characters: two answers may begin with the same words. Histories that part
    before the last turn give responses of several turns. Raises RowFault if nothing was chosen
    (identical, or one is the other's beginning), nothing is shared, or an answer is missing.
    """
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        check_ending(turns, name)
    if chosen == rejected:
        raise RowFault("identical_responses", "chosen and rejected are identical.")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared in (len(chosen), len(rejected)):
        raise RowFault("one_is_prefix", "chosen and rejected are the same as far as both go.")
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1
    if not shared:
        raise RowFault("no_shared_prompt", "chosen and rejected share no prompt.")
    return Prompt(chosen[:shared]), Response(chosen[shared:]), Response(rejected[shared:])


def check_ending(turns: Turns, name: str) -> None:
    """Raises RowFault unless the last turn is the assistant's and says something."""
    if not turns or turns[-1].role != "assistant":
        raise RowFault("ends_without_answer", f"{name} does not end with an assistant turn.")
    if not turns[-1].content.strip():
        raise RowFault("empty_response", f"the last answer of {name} is empty.")


def last_answer(turns: Turns) -> tuple[Prompt, Response]:
    """Everything before the closing turn of the assistant, and that turn.

    An assistant that speaks several times in a row gives a response of as many turns. `turns`
    ends with the assistant's. Raises RowFault if there is nothing before it.
    """
    begins = len(turns) - 1
    while begins and turns[begins - 1].role == "assistant":
        begins -= 1
    if not begins:
        raise RowFault("empty_prompt", "there is no prompt before the answer.")
    return Prompt(turns[:begins]), Response(turns[begins:])
