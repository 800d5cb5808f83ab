"""A failing plan made smaller: take away halves of the messages and faults, then single ones, while it still fails."""

from copy import deepcopy

from tests.sim.plan import Plan
from tests.sim.world import Outcome, play

MOST = 200  # runs


def describe(plan: Plan) -> str:
    """The plan as text."""
    head = ", ".join(f"{n}={getattr(plan, n)}" for n in ("ordered", "separate_home", "maildir", "worker",
                                                         "delay_warning", "split"))  # fmt: skip
    lines = [head, *(f"  {message}" for message in plan.messages), *(f"  {fault}" for fault in plan.faults)]
    used = {r for m in plan.messages for r in m.recipients}
    lines += [f"  {address}: {codes}" for address, codes in plan.scripts.items() if address in used]
    lines += [f"  {domain}: {actions}" for domain, actions in plan.dots.items()]
    return "\n".join(lines)


def smaller(plan: Plan) -> tuple[Plan, Outcome]:
    """The smallest plan found that fails, and how.  plan: one that fails."""
    best, outcome = deepcopy(plan), play(deepcopy(plan))
    budget = MOST
    changed = True
    while changed and budget > 0:
        changed = False
        for candidate in _candidates(best):
            budget -= 1
            tried = play(deepcopy(candidate))
            if tried.wrong:
                best, outcome, changed = candidate, tried, True
                break
            if budget <= 0:
                break
    return best, outcome


def _candidates(plan: Plan) -> list[Plan]:
    out: list[Plan] = []
    for name in ("messages", "faults"):
        items = getattr(plan, name)
        size = len(items)
        while size:
            if size < len(items) or name == "faults":  # a run without messages shows nothing
                out += [_without(plan, name, i, size) for i in range(0, len(items), size)]
            size //= 2
    for i, message in enumerate(plan.messages):
        for recipient in message.recipients if len(message.recipients) > 1 else ():
            less = deepcopy(plan)
            less.messages[i].recipients.remove(recipient)
            out.append(less)
        if message.lines > 1:
            less = deepcopy(plan)
            less.messages[i].lines = 1
            out.append(less)
    for domain in plan.dots:
        less = deepcopy(plan)
        del less.dots[domain]
        out.append(less)
    for name in ("worker", "delay_warning", "separate_home"):
        if getattr(plan, name):
            less = deepcopy(plan)
            setattr(less, name, False)
            out.append(less)
    return out


def _without(plan: Plan, name: str, start: int, size: int) -> Plan:
    less = deepcopy(plan)
    del getattr(less, name)[start : start + size]
    return less
