"""Skills: learnt into the log, back from it bit for bit, taken back exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from lessons import QUICK, answered, labelled

import editcl
from editcl.errors import EditclError, LogError, NonFiniteError
from editcl.facts import Fact
from editcl.learning.answers import Way, greedy, mixed_log_probs
from editcl.learning.batches import Encoded, encode_examples, encode_prompts
from editcl.learning.callbacks import Callback
from editcl.learning.checkpoint import Checkpoint
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.session import Route, Session
from editcl.learning.skills import Skills
from editcl.learning.strategies import STRATEGIES, CoLoR, Replay, Sequential, combine
from editcl.learning.stream import evaluate_stream
from editcl.learning.tasks import Example, Task, TaskError
from editcl.log import EditLog
from editcl.model import EditableModel, tensor_bytes
from editcl.update import WeightUpdate

SMALL = AdapterSettings(rank=4)
ONE, TWO, THREE = answered("one"), labelled("two", ("red", "blue")), answered("three")
PROMPTS = ["one 3: say Tower", "two: the Paris 7 is", "three 1: say Rome", "The Eiffel Tower is in"]
SEVERAL = ("per_task", "replay", "ewc", "inflora", "joint")


def fresh(log: Path | None = None) -> EditableModel:
    model = editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer())
    if log is not None:
        EditLog(model, log)
    return model


def learn(skills: Skills, task: Task, strategy="per_task", **options):
    options = {"settings": QUICK, "adapter": None, "show": False} | options
    return skills.learn(task, strategy, **options)


def bits(skills: Skills) -> dict[str, bytes]:
    """Everything that predictions are made of: the next token's distribution, by way."""
    found = {}
    for way in (None, *skills.tasks, *(("mixture", "infer") if skills.tasks else ())):
        found[str(way)] = bytes(tensor_bytes(skills.next_token(PROMPTS, way)))
    return found


def adapter_bits(bank: Adapters) -> dict[str, dict[str, bytes]]:
    return {n: {k: bytes(tensor_bytes(t)) for k, t in bank.state(n).items()} for n in bank.names}


# -- the log --------------------------------------------------------------------------------------


def test_a_skill_is_an_entry_with_what_it_was_trained_on() -> None:
    model = fresh()
    skills = Skills(model)
    projection = model.down_projection(1)
    update = WeightUpdate(projection.name, torch.ones(model.d_mlp, 1), torch.ones(model.d_model, 1))
    model.log.append([update], [Fact("Rome", "{} is", "Paris")], method="rome", layers=[1])
    long = replace(QUICK, steps=40)
    skill = learn(skills, ONE, settings=long, seed=3)
    assert model.log.timeline[-1] is skill and skill.id == "s0001"
    assert skill.slot == skill.task == "one" and skill.strategy == "per_task"
    assert skill.edits == {"e0001": (0,)} and skill.parents == ()
    assert skill.details["score"]["before"] == 0.0 < skill.details["score"]["after"]
    assert skill.details["seed"] == 3 and skill.details["training"]["lr"] == long.lr
    assert skill.details["loss"]["last"] < skill.details["loss"]["first"]
    other = learn(skills, TWO)
    assert other.parents == ("s0001",) and skills.tasks == ("one", "two")
    assert "one (per_task), two (per_task)" in repr(skills)
    assert skills.evaluate(ONE).score == skill.details["score"]["after"]


@pytest.mark.parametrize("strategy", SEVERAL)
def test_a_log_brings_skills_back_and_learning_goes_on_as_if_it_had_never_been_closed(
    strategy, tmp_path
) -> None:
    stayed = Skills(fresh())
    for task in (ONE, TWO, THREE):
        learn(stayed, task, strategy)
    for task in (ONE, TWO, THREE):
        model = fresh(tmp_path / "log")
        with model.log:
            reopened = Skills(model)
            learn(reopened, task, strategy)
            seen = bits(reopened), adapter_bits(reopened.adapters)
        model = fresh(tmp_path / "log")
        with model.log:
            back = Skills(model)
            assert (bits(back), adapter_bits(back.adapters)) == seen
    assert adapter_bits(stayed.adapters) == seen[1] and bits(stayed) == seen[0]


def test_every_strategy_keeps_what_it_needs_in_the_log(tmp_path) -> None:
    short = replace(QUICK, steps=3)
    for name in STRATEGIES:
        model = fresh(tmp_path / name)
        with model.log:
            learn(Skills(model), ONE, name, settings=short)
        model = fresh(tmp_path / name)
        with model.log:
            skills = Skills(model)
            assert learn(skills, TWO, name, settings=short).details["steps"] == 3, name
            assert skills.next_token(PROMPTS[:1], "two").isfinite().all()


def test_streams_and_skills_learn_the_same() -> None:
    skills = Skills(fresh())
    for task in (ONE, TWO):
        learn(skills, task, "sequential")
    found = evaluate_stream(fresh(), (ONE, TWO), "sequential", settings=QUICK, show_progress=False)
    last = found.runs[0].scores[-1]
    assert [skills.evaluate(task).score for task in (ONE, TWO)] == list(last)


# -- taking back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", SEVERAL)
def test_a_rolled_back_task_leaves_the_predictions_from_before_it(strategy) -> None:
    skills = Skills(fresh())
    states = [bits(skills)]
    entries = []
    for task in (ONE, TWO, THREE):
        entries.append(learn(skills, task, strategy))
        states.append(bits(skills))
    assert len({state.get("mixture") for state in states}) == 4
    skills.rollback("three")
    assert bits(skills) == states[2]
    again = learn(skills, THREE, strategy)
    assert again.id == "s0004" and bits(skills) == states[3]
    skills.rollback_to(entries[0])
    assert bits(skills) == states[1] and skills.tasks == ("one",)
    skills.rollback_to("start")
    assert bits(skills) == states[0] and skills.adapters.names == ()


@pytest.mark.parametrize("strategy", ["per_task", "color"])
def test_a_task_from_the_middle_can_go_alone(strategy) -> None:
    skills = Skills(fresh())
    for task in (ONE, TWO, THREE):
        learn(skills, task, strategy)
    before = bits(skills)
    report = skills.rollback("two")
    assert [skill.task for skill in report.skills] == ["two"]
    after = bits(skills)
    assert skills.tasks == ("one", "three") and "two" not in skills.infer(PROMPTS)
    assert after["one"] == before["one"] and after["three"] == before["three"]
    skills.model.log.reapply("two")
    assert bits(skills) == before


@pytest.mark.parametrize("strategy", ["sequential", "olora"])
def test_what_later_tasks_rest_on_can_not_go_alone(strategy) -> None:
    skills = Skills(fresh())
    learn(skills, ONE, strategy)
    learn(skills, TWO, strategy)
    before = bits(skills)
    with pytest.raises(LogError, match="s0002"):
        skills.rollback("one")
    assert bits(skills) == before


def test_an_adapter_taken_out_behind_its_back_is_noticed() -> None:
    skills = Skills(fresh())
    for task in (ONE, TWO):
        learn(skills, task, "olora")
    skills.model.log.rollback("one")
    with pytest.raises(LogError, match="s0002 .two. was trained beside the adapter 'one'"):
        skills.predict(PROMPTS)
    skills.model.log.rollback("two")
    assert skills.tasks == () and skills.adapters.names == ()


def test_edits_come_and_go_beneath_skills() -> None:
    model = fresh()
    skills = Skills(model)
    learn(skills, ONE)
    before = bits(skills)
    projection = model.down_projection(1)
    update = WeightUpdate(projection.name, torch.ones(model.d_mlp, 1), torch.ones(model.d_model, 1))
    model.log.append([update], [Fact("Rome", "{} is", "Paris")], method="rome", layers=[1])
    assert bits(skills)["one"] != before["one"]
    with pytest.raises(LogError, match="is an edit"):
        skills.rollback("e0001")
    skills.rollback_to("s0001")
    assert bits(skills) == before


# -- what goes wrong ------------------------------------------------------------------------------


class Failing(Callback):
    def on_step(self, step, values) -> None:
        if step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("strategy", ["per_task", "olora", "replay"])
def test_an_interrupted_training_leaves_all_as_it_was(strategy, tmp_path) -> None:
    model = fresh(tmp_path / "log")
    with model.log:
        skills = Skills(model)
        learn(skills, ONE, strategy)
        before = bits(skills), adapter_bits(skills.adapters)
        with pytest.raises(KeyboardInterrupt):
            learn(skills, TWO, strategy, callbacks=[Failing()])
        assert (bits(skills), adapter_bits(skills.adapters)) == before
        assert len(model.log.skills) == 1 and model.log.verify().ok
        learn(skills, TWO, strategy)
        straight = Skills(fresh())
        for task in (ONE, TWO):
            learn(straight, task, strategy)
        assert adapter_bits(straight.adapters) == adapter_bits(skills.adapters)


def test_a_log_that_can_not_be_written_leaves_all_as_it_was(monkeypatch) -> None:
    skills = Skills(fresh())
    learn(skills, ONE, "sequential")
    before = bits(skills)

    def full(*_, **__):
        raise LogError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(LogError, match="disk is full"):
        patch.setattr(EditLog, "append_skill", full)
        learn(skills, TWO, "sequential")
    assert bits(skills) == before and skills.tasks == ("one",)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path) -> None:
    straight = Skills(fresh())
    learn(straight, ONE, "replay")
    skills = Skills(fresh())
    place = Checkpoint(tmp_path / "checkpoint", every=1)
    with pytest.raises(KeyboardInterrupt):
        learn(skills, ONE, "replay", checkpoint=place, callbacks=[Failing()])
    assert place.folder.exists()
    resumed = Skills(fresh())
    learn(resumed, ONE, "replay", checkpoint=place.folder)
    assert adapter_bits(resumed.adapters) == adapter_bits(straight.adapters)
    assert not place.folder.exists()


def test_bad_input_is_refused_before_anything_is_written(tmp_path) -> None:
    model = fresh(tmp_path / "log")
    with model.log:
        skills = Skills(model)
        learn(skills, ONE, "sequential", adapter=SMALL)
        before = bits(skills)
        long = tuple(Example("say", "Paris Rome " * 60) for _ in range(2))
        for task, options, message in (
            (ONE, {"strategy": "sequential"}, "has been learnt .s0001"),
            (replace(TWO, name="infer"), {}, "can't be called 'infer'"),
            (replace(TWO, name="shared"), {}, "can't be called 'shared'"),
            (TWO, {"strategy": "magic"}, "no strategy 'magic'"),
            (TWO, {"strategy": "replay"}, "holds what sequential has learnt"),
            (TWO, {"strategy": "joint"}, "holds what sequential has learnt"),
            (TWO, {"strategy": "sequential", "adapter": AdapterSettings(rank=2)}, "other settings"),
            (TWO, {"strategy": "olora", "adapter": AdapterSettings("ia3")}, "only LoRA"),
            (Task("long", long), {}, "shorten it"),
        ):
            with pytest.raises(EditclError, match=message):
                learn(skills, task, **options)
        with pytest.raises(NonFiniteError, match="became NaN"):
            learn(skills, TWO, settings=replace(QUICK, lr=1e30, clip=None))
        with pytest.raises(EditclError, match="no active skill is of a task 'five'"):
            skills.predict(PROMPTS, "five")
        with pytest.raises(EditclError, match="weights are of a mixture"):
            skills.predict(PROMPTS, "one", weights={"one": 1.0})
        with pytest.raises(EditclError, match="can't have the weight"):
            skills.predict(PROMPTS, "mixture", weights={"two": 1.0})
        with pytest.raises(EditclError, match="in brackets"):
            skills.predict("a text")
        with pytest.raises(TaskError, match="blank"):
            skills.predict([" "])
        assert bits(skills) == before and len(model.log.skills) == 1
        assert len(model.log.timeline) == 1 and not model.log.events


def test_nothing_learnt_has_nothing_to_infer() -> None:
    skills = Skills(fresh())
    with pytest.raises(EditclError, match="no task can be inferred"):
        skills.predict(PROMPTS)
    with pytest.raises(EditclError, match="nothing to mix"):
        skills.predict(PROMPTS, "mixture")
    with pytest.raises(LogError, match="learnt are none yet"):
        skills.evaluate(ONE)
    assert skills.predict([]) == [] and skills.evaluate(ONE, None).score == 0.0
    plain = skills.model.generate(PROMPTS[:1], 5)[0].strip()
    assert skills.predict(PROMPTS[:1], None, max_new_tokens=5)[0].text == plain


def test_strategies_with_hyperparameters_come_back_with_them(tmp_path) -> None:
    model = fresh(tmp_path / "log")
    with model.log:
        skills = Skills(model)
        learn(skills, ONE, Replay(0.5, keeps="quota"))
        learn(skills, TWO, combine(CoLoR(centroids=2), Replay(0.4)))
        before = bits(skills)
    model = fresh(tmp_path / "log")
    with model.log:
        skills = Skills(model)
        assert bits(skills) == before
        with pytest.raises(EditclError, match="give it those that it had"):
            learn(skills, THREE, "replay")
        learn(skills, THREE, Replay(0.5, keeps="quota"))


def test_a_strategy_that_its_settings_do_not_make_must_be_passed() -> None:
    class Own(Sequential):
        name = "own"

        def __init__(self) -> None:
            self.weight = 2.0

    skills = Skills(fresh())
    learn(skills, ONE, Own())
    with pytest.raises(EditclError, match="strategies={'own': lambda"):
        skills.predict(PROMPTS)
    told = Skills(skills.model, strategies={"own": Own})
    assert len(told.predict(PROMPTS)) == len(PROMPTS)


def test_a_skill_of_other_making_is_refused() -> None:
    model = fresh()
    model.log.append_skill(
        {"a": torch.ones(2)}, task="a", slot="a", settings=SMALL.to_json(), strategy="x"
    )
    with pytest.raises(EditclError, match="holds no skill that Skills.learn has written"):
        Skills(model)


def test_a_log_of_another_base_is_refused(tmp_path) -> None:
    model = fresh(tmp_path / "log")
    with model.log:
        learn(Skills(model), ONE)
    other = editcl.wrap(tiny.build("gpt2", seed=1), tiny.byte_tokenizer())
    with pytest.raises(LogError, match="belongs to another model"):
        EditLog(other, tmp_path / "log")


# -- predicting -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught() -> Skills:
    skills = Skills(fresh())
    long = replace(QUICK, steps=60)
    learn(skills, ONE, settings=long)
    learn(skills, TWO, "sequential", settings=long)
    learn(skills, THREE, "color", settings=long)
    return skills


def naive_next(skills: Skills, text: str, name: str | None) -> torch.Tensor:
    bank, model = skills.adapters, skills.model
    (row,) = encode_prompts(model, [text])
    slots = {s.task: s.slot for s in skills.active}
    with torch.no_grad(), bank.using(() if name is None else (slots[name],)):
        return bank.view.forward({"input_ids": torch.tensor([row.ids])})[0, -1].log_softmax(-1)


def test_the_next_token_is_that_of_the_task_or_of_the_mixture(taught) -> None:
    for task in (None, "one", "two", "three"):
        found = taught.next_token(PROMPTS, task)
        for row, text in zip(found, PROMPTS, strict=True):
            assert row.tolist() == pytest.approx(naive_next(taught, text, task).tolist(), abs=1e-4)
    weights = {"one": 3.0, "three": 1.0}
    found = taught.next_token(PROMPTS, "mixture", weights=weights)
    for row, text in zip(found, PROMPTS, strict=True):
        naive = sum(w * naive_next(taught, text, n).exp() for n, w in weights.items()) / 4
        assert row.exp().tolist() == pytest.approx(naive.tolist(), abs=1e-5)
    even = taught.next_token(PROMPTS, "mixture")
    naive = sum(naive_next(taught, PROMPTS[0], n).exp() for n in taught.tasks) / 3
    assert even[0].exp().tolist() == pytest.approx(naive.tolist(), abs=1e-5)


def test_answers_are_labels_or_greedy_up_to_the_end(taught) -> None:
    answers = taught.predict([example.prompt for example in ONE.test], "one")
    right = [a.text == e.completion for a, e in zip(answers, ONE.test, strict=True)]
    assert sum(right) / len(right) == taught.evaluate(ONE).score > 0
    assert all(answer.task == "one" and answer.log_prob < 0 for answer in answers)
    labels = taught.predict([example.prompt for example in TWO.test], "two")
    assert [answer.text for answer in labels] == list(taught.evaluate(TWO).predicted)
    assert taught.predict(PROMPTS, None)[0].task is None


def test_the_task_of_each_prompt_is_inferred_whatever_the_strategy(taught) -> None:
    for task in (ONE, TWO, THREE):
        prompts = [example.prompt for example in task.test]
        assert taught.infer(prompts) == [task.name] * len(prompts)
        assert taught.predict(prompts) == taught.predict(prompts, task.name)
        assert taught.evaluate(task, "infer") == taught.evaluate(task)
    mixed = [task.test[0].prompt for task in (THREE, ONE, TWO, ONE)]
    assert [a.task for a in taught.predict(mixed)] == ["three", "one", "two", "one"]
    assert [a.prompt for a in taught.predict(mixed)] == mixed


def test_a_mixture_of_one_is_that_one_and_is_judged_like_it(taught) -> None:
    for task in (ONE, TWO):
        prompts = [example.prompt for example in task.test]
        alone = taught.predict(prompts, "mixture", weights={task.name: 1.0, "three": 0.0})
        told = taught.predict(prompts, task.name)
        if task is ONE:  # a mixture of tasks that are not all labelled is answered freely
            assert [a.text for a in alone] == [a.text for a in told]
        assert [a.task for a in alone] == [None] * len(alone)
    single = Skills(fresh())
    for task in (ONE, TWO):
        learn(single, task, settings=replace(QUICK, steps=60))
        mixed, told = single.evaluate(task, "mixture"), single.evaluate(task)
        if task is ONE:
            assert mixed.correct == told.correct
            assert mixed.log_probs == pytest.approx(told.log_probs, abs=1e-5)
            single.rollback("one")
        else:
            assert mixed.predicted == told.predicted and mixed.score == told.score


def test_a_mixture_is_greedy_in_its_own_distribution(taught) -> None:
    bank, model = taught.adapters, taught.model
    session = Session(model, bank)
    ways = [Way(session, None, Route(("one",)), 0.3), Way(session, None, Route(("three",)), 0.7)]
    rows = encode_prompts(model, PROMPTS)
    for text, (ids, mean) in zip(PROMPTS, greedy(ways, rows, 6), strict=True):
        (row,) = encode_prompts(model, [text])
        said, values = list(row.ids), []
        for _ in range(6):
            parts = []
            for way in ways:
                with torch.no_grad(), bank.using(way.route.names):
                    logits = bank.view.forward({"input_ids": torch.tensor([said])})[0, -1]
                parts.append(way.weight * logits.double().softmax(-1))
            best = sum(parts).max(0)
            said.append(int(best.indices))
            values.append(float(best.values.log()))
            if said[-1] == model.tokenizer.eos_token_id:
                break
        assert said[len(row.ids) :] == list(ids)
        assert mean == pytest.approx(sum(values) / len(values), abs=1e-4)
    own = encode_examples(model, ONE.test)
    for i, found in enumerate(mixed_log_probs(ways, own)):
        naive = torch.zeros(own[i].n_targets, dtype=torch.float64)
        for way in ways:
            with torch.no_grad(), bank.using(way.route.names):
                ids = torch.tensor([own[i].ids])
                logits = bank.view.forward({"input_ids": ids})[0].double().softmax(-1)
            at = range(own[i].start, len(own[i].ids))
            naive += way.weight * torch.tensor([float(logits[k - 1, own[i].ids[k]]) for k in at])
        assert found.tolist() == pytest.approx(naive.log().tolist(), abs=1e-4)


def test_answers_that_do_not_fit_are_refused(taught) -> None:
    session = Session(taught.model, taught.adapters)
    row = Encoded(tuple(range(1, 90)), 89)
    with pytest.raises(EditclError, match="the model takes at most"):
        greedy([Way(session, None, Route())], [row], 16)


def test_plain_texts_are_judged_by_the_skill_that_is_named() -> None:
    lines = tuple(Example("", f"The Eiffel Tower is in Paris, and {i} more") for i in range(4))
    task = Task("plain", lines, lines[:2], "text")
    skills = Skills(fresh())
    skill = learn(skills, task, settings=replace(QUICK, steps=20))
    assert skill.details["score"]["after"] > skill.details["score"]["before"]
    assert skills.evaluate(task).score == skill.details["score"]["after"]
    with pytest.raises(EditclError, match="name it"):
        skills.evaluate(task, "infer")
    assert skills.infer(["The Eiffel Tower is"]) == ["plain"]
