"""Standings: what counts as weaker, and what is measured again."""

from __future__ import annotations

from pupils import FACTS, OTHER, TWO, learn, learner

from editcl.learner.judge import Judge
from editcl.learner.standing import Standing, Standings, own_survival, weakened
from editcl.learner.steps import Kept, Step
from editcl.learning.tasks import Example
from editcl.routing.decision import Cost, Decision


def step(name: str, n: int) -> Step:
    decision = Decision(name, "train", 1.0, (), {}, Cost(0.0, None, None))
    kept = Kept(tuple(Example(f"{name} {i}", "x") for i in range(n)))
    return Step(f"n {name}", name, "train", decision.to_json(), kept=kept)


def test_lost_facts_and_fallen_scores_are_weaker_and_a_single_example_is_not() -> None:
    steps = (step("fell", 40), step("hardly", 40), step("one of ten", 10), step("rose", 40))
    places = [("e0001", j) for j in range(4)]
    of = dict(zip(places, [*FACTS, *OTHER], strict=True))
    ids = [one.id for one in steps]
    before = Standing(
        dict(zip(places, (True, True, False, False), strict=True)), of,
        dict(zip(ids, (1.0, 1.0, 0.9, 0.2), strict=True)), steps,
    )  # fmt: skip
    after = Standing(
        dict(zip(places, (True, False, False, True), strict=True)), of,
        dict(zip(ids, (0.9, 0.975, 0.8, 0.9), strict=True)), steps,
    )  # fmt: skip
    found = weakened(before, after)
    assert [(one.what, one.name) for one in found] == [("fact", str(FACTS[1])), ("task", "fell")]
    assert str(found[1]) == "fell 1.00 -> 0.90" and "no longer holds" in str(found[0])
    survival = own_survival(before, after, 9)
    assert (survival.n_facts, survival.before, survival.kept) == (9, 2, 1)
    assert survival.lost == (str(FACTS[1]),)
    assert own_survival(Standing({}, {}, {}, ()), after, 0) is None


def test_nothing_is_measured_twice_until_the_log_changes(monkeypatch) -> None:
    one = learner()
    learn(one, FACTS, "edit", name="places")
    learn(one, TWO, "train")
    asked: list[int] = []
    holds, score = Judge.holds, Judge.score
    monkeypatch.setattr(Judge, "holds", lambda s, f: (asked.append(len(f)), holds(s, f))[1])
    monkeypatch.setattr(Judge, "score", lambda s, k, t: (asked.append(-1), score(s, k, t))[1])
    standings = Standings(one._judge)
    facts = {("e0001", j): fact for j, fact in enumerate(one.log.entries[0].facts)}
    first = standings.of(facts, one.history())
    assert asked == [len(facts), -1] and list(first.by_name()) == ["two"]
    assert standings.again(first) == first and asked == [len(facts), -1, 0]
    one.log.note("remark", {"text": "changes nothing"})
    standings.again(first)
    assert -1 not in asked[2:]
    one.rollback("places")
    standings.again(first)
    assert asked[-2:] == [len(facts), -1]


def test_a_repair_belongs_to_its_step_where_later_ones_are_taken_back(monkeypatch) -> None:
    one = learner()
    learn(one, FACTS, "edit", name="places")
    seen = iter([[True] * 3, [True], [False] * 3, [True] * 3])

    def holds(_self, facts):
        return next(seen, [True] * len(facts))[: len(facts)] if facts else []

    monkeypatch.setattr(Judge, "holds", holds)
    outcome = learn(one, OTHER, "edit", name="homes", repair=True)
    assert outcome.entries == ("e0002", "e0003"), outcome
    monkeypatch.undo()
    learn(one, TWO, "train")
    one.rollback_to("homes")
    assert [(s.task, s.state) for s in one.history()] == [
        ("places", "active"), ("homes", "active"), ("two", "rolled back"),
    ]  # fmt: skip
    one.rollback_to("places")
    assert one.history()[1].state == "rolled back"


def test_a_repair_that_mends_nothing_is_taken_back(monkeypatch) -> None:
    one = learner()
    learn(one, FACTS, "edit", name="places")
    seen = iter([[True] * 3, [True]])
    monkeypatch.setattr(
        Judge, "holds", lambda _s, facts: next(seen, [False] * len(facts)) if facts else []
    )
    outcome = learn(one, OTHER, "edit", name="homes", repair=True)
    assert outcome.entries == ("e0002",) and outcome.repaired == ()
    assert not one.log.active("e0003") and "mended nothing" in outcome.notes[0]
    assert len(outcome.weakened) == 3
