"""What circuits have to keep."""

import pytest
import torch

from lit_sparse.circuits.attention_edges.goals import Difference, Distribution, Probability


@pytest.fixture
def logits():
    """logits(rows) of 7 tokens."""
    generator = torch.Generator().manual_seed(0)
    return lambda rows: torch.randn(rows, 7, dtype=torch.float64, generator=generator) * 3


def tokens(*of_prompts):
    chosen = torch.zeros(len(of_prompts), 7, dtype=torch.bool)
    for prompt, some in enumerate(of_prompts):
        chosen[prompt, list(some)] = True
    return chosen


def test_a_distribution_loses_the_kl(logits):
    whole, other = logits(3), logits(6)
    goal = Distribution(whole, 0.1)
    for sample, losses in enumerate(goal.loss(other)):
        expected = torch.nn.functional.kl_div(
            other[3 * sample : 3 * sample + 3].log_softmax(-1), whole.log_softmax(-1), reduction="none", log_target=True
        )
        torch.testing.assert_close(losses, expected.sum(-1))
    assert goal.tolerance == 0.1 and goal.loss(other).shape == (2, 3) and (goal.loss(other) > 0).all()
    torch.testing.assert_close(goal.loss(whole + 5), torch.zeros(1, 3, dtype=torch.float64))


def test_a_probability_meets_its_goal_where_the_share_is_kept(logits):
    whole, other, answers = logits(2), logits(6), torch.tensor([4, 0])
    goal = Probability(answers, whole, keep=0.8)
    p_whole, p = whole.softmax(-1), other.softmax(-1).unflatten(0, (3, 2))
    share = torch.stack([p[:, 0, 4] / p_whole[0, 4], p[:, 1, 0] / p_whole[1, 0]], dim=1)
    losses = goal.loss(other)
    torch.testing.assert_close(losses, -share.log())
    assert torch.equal(losses <= goal.tolerance, share >= 0.8) and (share >= 0.8).any() and (share < 0.8).any()
    assert 0 < Probability(answers, whole, keep=1.0).tolerance < 1e-3


def test_a_difference_is_0_for_the_whole_model_and_1_with_all_edges_off(logits):
    whole, ablated = logits(2), logits(2)
    right, wrong = tokens([1, 2], [0]), tokens([3], [4, 5, 6])
    goal = Difference(right, wrong, whole, ablated, keep=0.8)
    both = torch.cat([whole, ablated])
    torch.testing.assert_close(goal.loss(both), torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    assert goal.tolerance == pytest.approx(0.2)


def test_the_metric_is_log_odds_of_several_answers(logits):
    goal = Difference(tokens([1, 2], [0]), tokens([3], [4, 5, 6]), logits(2), logits(2))
    some = logits(4)
    p = some.softmax(-1)
    expected = [
        [(p[0, 1] + p[0, 2]) / p[0, 3], p[1, 0] / p[1, 4:].sum()],
        [(p[2, 1] + p[2, 2]) / p[2, 3], p[3, 0] / p[3, 4:].sum()],
    ]
    torch.testing.assert_close(goal.metric(some), torch.tensor(expected, dtype=torch.float64).log())
    f = (goal.metric(some) - goal.ablated) / (goal.whole - goal.ablated)
    torch.testing.assert_close(goal.loss(some), 1 - f)


def test_single_tokens_have_gradients_without_nan(logits):
    goal = Difference(tokens([1], [0]), tokens([3], [4]), logits(2), logits(2))
    some = logits(2).requires_grad_()
    goal.metric(some).sum().backward()
    expected = torch.zeros(2, 7, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 1
    expected[0, 3] = expected[1, 4] = -1
    torch.testing.assert_close(some.grad, expected)


@pytest.mark.parametrize("kind", ["distribution", "probability", "difference"])
def test_the_goal_of_one_prompt_is_its_part_of_all(kind, logits):
    whole, ablated, found = logits(3), logits(3), logits(6)
    goal = {
        "distribution": lambda: Distribution(whole),
        "probability": lambda: Probability(torch.tensor([1, 5, 2]), whole),
        "difference": lambda: Difference(tokens([1], [2, 3], [4]), tokens([0], [0], [0]), whole, ablated),
    }[kind]()
    of_second = goal.only(1)
    torch.testing.assert_close(of_second.loss(found[1::3]), goal.loss(found)[:, 1:2])
    assert of_second.tolerance == goal.tolerance and goal.loss(found).shape == (2, 3)
