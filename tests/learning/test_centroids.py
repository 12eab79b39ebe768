"""Centroids and radii: how far a prompt may be from a task to be one of its own."""

from __future__ import annotations

import pytest
import torch
from lessons import QUICK, labelled, session

from editcl.errors import EditclError
from editcl.learning.batches import encode_prompts
from editcl.learning.centroids import N_CENTROIDS, centroids_of, radii
from editcl.learning.skills import Skills
from editcl.learning.tasks import Example, Task

ONE, TWO = labelled("one"), labelled("two", ("red", "blue"))


def test_a_radius_is_the_farthest_own_prompt_or_the_farthest_next_neighbour() -> None:
    cloud = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    centroids = cloud[:5] + 0.1
    found = radii(cloud, centroids)
    owner = [min(range(5), key=lambda c, x=x: float((x - centroids[c]).norm())) for x in cloud]
    next_one = max(
        min(float((x - y).norm()) for j, y in enumerate(cloud) if j != i)
        for i, x in enumerate(cloud)
    )
    for c in range(5):
        own = [
            float((x - centroids[c]).norm()) for x, o in zip(cloud, owner, strict=True) if o == c
        ]
        assert float(found[c]) == pytest.approx(max([*own, next_one]), rel=1e-5)
    assert len({round(float(r), 4) for r in found}) > 1, "both terms are seen"


def test_few_prompts_are_centroids_themselves_and_still_have_a_radius() -> None:
    few = Task("few", tuple(Example(f"prompt {i}", "Rome") for i in range(4)))
    centroids, radius = centroids_of(session(), few)
    assert len(centroids) == 4 < N_CENTROIDS and bool((radius > 0).all())
    same = torch.ones(3, 2)
    assert radii(same, same[:1]).tolist() == [0.0] and radii(same[:1], same[:1]).tolist() == [0.0]


def test_prompts_beyond_the_radius_go_to_the_model_without_skills() -> None:
    skills = Skills(session().model)
    for task in (ONE, TWO):
        skills.learn(task, settings=QUICK, show=False)
    own = [example.prompt for task in (ONE, TWO) for example in task.train]
    far = ["München liegt in Bayern; Straße und Brücke", "東京タワーは東京にあります。"]
    prompts = own + far
    assert None not in skills.infer(prompts), "without abstaining each prompt has a task"
    found = skills.infer(prompts, abstain=1.0 + 1e-6)
    assert found[: len(own)] == skills.infer(own), "all training prompts are within"
    assert found[len(own) :] == [None, None]
    content = [skills._shelf.content(skill) for skill in skills.active]
    centroids = torch.cat([one.centroids for one in content])
    radius = torch.cat([one.radius for one in content])
    features = skills._shelf.session("").features(encode_prompts(skills.model, prompts))
    for abstain in (0.3, 0.7, 1.5, 3.0):
        nearest = torch.cdist(features, centroids).min(1)
        outside = (nearest.values > abstain * radius[nearest.indices]).tolist()
        assert [name is None for name in skills.infer(prompts, abstain=abstain)] == outside
    base = skills.next_token(far, None)
    assert torch.equal(skills.next_token(far, abstain=1.1), base)
    assert not torch.equal(skills.next_token(far), base)
    answers = skills.predict([own[0], far[0]], abstain=1.1)
    assert answers[0].task == found[0] and answers[1].task is None
    assert answers[0].text in ONE.labels
    with pytest.raises(EditclError, match="abstains always"):
        skills.infer(prompts, abstain=0.0)


def test_scores_with_abstaining_are_those_of_the_skill_near_and_of_the_base_far() -> None:
    skills = Skills(session().model)
    skills.learn(ONE, settings=QUICK, show=False)
    near = [name is not None for name in skills.infer([e.prompt for e in ONE.test], abstain=0.8)]
    assert any(near) and not all(near)
    told, base = skills.evaluate(ONE), skills.evaluate(ONE, None)
    mixed = skills.evaluate(ONE, "infer", abstain=0.8)
    wanted = [t if n else b for n, t, b in zip(near, told.log_probs, base.log_probs, strict=True)]
    assert list(mixed.log_probs) == pytest.approx(wanted, rel=1e-4)


def test_a_skill_from_before_radii_were_kept_can_be_used_but_not_abstain() -> None:
    skills = Skills(session().model)
    skills.learn(ONE, settings=QUICK, show=False)
    (skill,) = skills.active
    tensors = skills.model.log.skill_tensors(skill)
    del tensors["radius"]
    old = Skills(session().model)
    old.model.log.append_skill(
        tensors,
        task=skill.task,
        slot=skill.slot,
        settings=skill.settings,
        strategy=skill.strategy,
        details=skill.details,
    )
    prompts = [example.prompt for example in ONE.test]
    assert old.infer(prompts) == ["one"] * len(prompts)
    with pytest.raises(EditclError, match="logged without the radii"):
        old.infer(prompts, abstain=1.1)
