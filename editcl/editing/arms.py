"""compare_methods(): several methods on the same facts in one run, each from the same weights.

Every arm solves and writes its updates on trial, is measured, and leaves the model as it was, bit
for bit; nothing is logged. In-context editing (IKE) is an arm that changes no weight. Knows no
method's equation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from editcl.editing.choices import check_amounts
from editcl.editing.guards import active_facts
from editcl.editing.incontext import draw_demonstrations, in_context
from editcl.editing.plan import Plan
from editcl.editing.refine import worth_refining
from editcl.editing.repair import lost_facts
from editcl.editing.trial import tried
from editcl.editing.values import ValueSettings
from editcl.editing.way import Way, background_for, plan_for, way_of
from editcl.evaluation.cases import Case
from editcl.evaluation.compare import Arm, Comparison, compare
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.progress import progress

IKE = "ike"
DEMONSTRATIONS = 8


def compare_methods(
    model: EditableModel,
    cases: Sequence[Case],
    methods: Sequence[str],
    *,
    batch_size: int | None = None,
    layers: Sequence[int] | None = None,
    settings: ValueSettings | str | None = None,
    preservation: float = Plan.preservation,
    refine: bool | None = None,
    seed: int = 0,
) -> Comparison:
    """Edits all cases by each method, in one batch or in sequence, and measures the final state.

    Args:
        model: the model; as before afterwards.
        cases: facts with probes.
        methods: names in METHODS, or "ike".
        batch_size: facts solved at once, batch after batch; None: all. Methods of one fact at a
            time always go one by one.
        layers, settings, preservation, refine, seed: as in `edit_csv`.

    Raises:
        EditclError: an unknown method, layer or amount, or a method left the model changed.
    """
    check_amounts(batch_size, preservation)
    facts = [case.fact for case in cases]
    n_facts = len(facts) + len(active_facts(model.log))
    arms: dict[str, Arm] = {}
    for name in methods:
        if name == IKE:
            arms[name] = in_context_arm(cases, seed)
        else:
            way = way_of(
                model,
                name,
                layers=layers,
                settings=settings,
                preservation=preservation,
                seed=seed,
                refine=worth_refining(n_facts) if refine is None else refine,
            )
            arms[name] = weights_arm(facts, way, batch_size)
    return compare(model, cases, arms)


def weights_arm(facts: Sequence[Fact], way: Way, batch_size: int | None) -> Arm:
    """An arm that edits the facts, batch after batch on the model edited so far."""
    size = 1 if way.editor.single else batch_size or max(1, len(facts))

    @contextmanager
    def arm(model: EditableModel) -> Iterator[None]:
        background, done = background_for(model, way), list[Fact]()
        with ExitStack() as stack:
            for begin in progress(range(0, len(facts), size), way.method):
                batch = list(facts[begin : begin + size])
                if way.refinement is not None:
                    batch += lost_facts(model, [*active_facts(model.log), *done], batch)
                plan = plan_for(model, batch, way, earlier=done, background=background)
                done += batch
                stack.enter_context(tried(model, way.editor(model, batch, plan).updates))
            yield

    return arm


def in_context_arm(cases: Sequence[Case], seed: int) -> Arm:
    """An arm that puts each case's fact in front of every prompt of the case.

    As many of `DEMONSTRATIONS` go before it as the model has room for, the prompt and its answer
    included; the rest is left out.
    """
    facts = [case.fact for case in cases]

    @contextmanager
    def arm(model: EditableModel) -> Iterator[Callable[[Case], str]]:
        texts: dict[Fact, str] = {}
        for case in cases:
            drawn = draw_demonstrations(case.fact, facts, count=DEMONSTRATIONS, seed=seed)
            room = model.max_tokens - _longest_question(model, case)
            while drawn and _n_tokens(model, in_context(case.fact, drawn)) > room:
                drawn = drawn[:-1]
            texts[case.fact] = in_context(case.fact, drawn)
        yield lambda case: texts[case.fact]

    return arm


def _longest_question(model: EditableModel, case: Case) -> int:
    """Tokens of the longest prompt of a case with the longest answer, and one for their seam."""
    probes = (*case.neighbours, *case.same_subject, *case.portability)
    fact = case.fact
    prompts = [fact.sentence, *case.paraphrases, *(probe.prompt for probe in probes)]
    answers = [fact.new_object, fact.old_object or "", *(probe.object for probe in probes)]
    answers += [alias for probe in probes for alias in probe.aliases]
    return sum(max(_n_tokens(model, text) for text in texts) for texts in (prompts, answers)) + 1


def _n_tokens(model: EditableModel, text: str) -> int:
    return len(model.tokenizer(text)["input_ids"])
