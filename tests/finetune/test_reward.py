"""The reward is the task's own score, and nothing else."""

import pytest

from vlm_probe.finetune.config import TrainConfig
from vlm_probe.finetune.reward import RewardScorer, reward_functions
from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.tasks import get_task


def settings(**changes):
    return TrainConfig(
        **({"model": "tiny", "tasks": ("towers-topblock",), "method": "ppo", "generations": 1} | changes)
    )


def said(*replies):
    return [[{"role": "assistant", "content": reply}] for reply in replies]


def test_a_reply_is_worth_what_the_task_says(topblock, stability):
    items = [topblock.items[0], stability.items[0]]
    action, judgement = items
    replies = ["0", action.question.reply(action.answer), judgement.question.reply(judgement.answer), "no idea", "99"]
    judged = RewardScorer(items).judge(replies, [0, 0, 1, 1, 0])
    expected = get_task("towers-topblock").score(action.scene, action.question, 0)
    assert (judged[0].reward, judged[0].success) == (expected.reward, expected.success)
    assert [j.reward for j in judged[1:]] == [1.0, 1.0, 0.0, 0.0]
    assert [j.parsed.status for j in judged[3:]] == ["no_answer", "out_of_range"]


def test_judgements_agree_with_the_scorer_for_every_answer(stability):
    for index, item in enumerate(stability.items):
        for text, value in item.question.grammar.candidates():
            score = get_task(item.task).score(item.scene, item.question, value)
            assert RewardScorer(stability.items).judge([text], [index])[0].reward == score.reward


def test_scores_are_remembered_within_bounds(topblock):
    judge = RewardScorer(topblock.items, OutcomeCache(2))
    judge.judge(["1", "1", "2", "3"], [0, 0, 0, 0])
    assert judge.cache.statistics.hits == 1
    assert judge.cache.statistics.kept == 2
    assert judge.seconds > 0


def test_what_is_logged(topblock):
    logged = {}
    (score,), weights = reward_functions(RewardScorer(topblock.items), settings())
    right = topblock.items[0].question.reply(topblock.items[0].answer)
    rewards = score(
        completions=said(right, "up", "0", "0"),
        index=[0, 0, 0, 0],
        place=[0, 0, 0, 0],
        log_metric=logged.__setitem__,
        trainer_state=None,
    )
    assert weights == [1.0]
    assert rewards[:2] == [1.0, 0.0]
    assert (logged["success"], logged["parse_rate"]) == (0.25, 0.75)
    assert logged["score"] == pytest.approx(sum(rewards) / 4)


def test_success_alone_can_be_rewarded_and_the_format_term_stands_apart(topblock):
    functions, weights = reward_functions(
        RewardScorer(topblock.items), settings(success_reward=True, format_reward=0.1)
    )
    ignore = {"log_metric": lambda name, value: None}
    near = [str(v) for v in range(-20, 21)]
    rewards = functions[0](completions=said(*near), index=[0] * 41, place=[0] * 41, **ignore)
    assert set(rewards) == {0.0, 1.0}
    assert functions[1](completions=said("3", "3 or 4"), index=[0, 0], **ignore) == [1.0, 0.0]
    assert weights == [1.0, 0.1]
