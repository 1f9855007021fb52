"""A recalibrator answers as the network does, keeps to its share of time, and learns from use."""

import functools
import operator
import random
import threading

import pytest
import torch
from torch import nn

import flexrel
from flexrel import PackError, RelevanceStats, UsageError, calibrate
from flexrel.core.joint import copied
from flexrel.core.throttle import MOST_TOGETHER, MOST_WAITING, Throttle
from flexrel.online import Recalibrator, drift
from flexrel.relevance import Attribution, ForgettingBlocks, SharedPasses, encode_blocks
from flexrel_edge.files import replace_file
from kills import killed_before
from networks import random_


def network(width=6):
    return random_(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))).eval()


def requests(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(1 + at % 3, 4, generator=draw) for at in range(count)]


def everything(model, **options):
    """Return a recalibrator that has time for all requests, so long as not too many wait."""
    return Recalibrator(model, max_overhead=1e12, **options)


def used(model, inputs, **options):
    """Return the stats of a recalibrator that measured these requests, one after the other."""
    with everything(model, **options) as answer:
        for x in inputs:
            answer(x)
            while (
                answer.observed().measured + answer.observed().failed < answer.observed().requests
            ):
                threading.Event().wait(0.001)
    return answer.stats()


def assert_close(one, other, rtol=1e-9):
    assert one.samples == pytest.approx(other.samples, rel=1e-12)
    assert set(one) == set(other)
    for name in one:
        for field, tensor in one[name].sums().items():
            torch.testing.assert_close(tensor, other[name].sums()[field], rtol=rtol, atol=1e-12)


# --- the share of time --------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0.01, 0.05, 0.5])
def test_passes_take_no_more_than_their_share_of_the_time_of_answers(most):
    throttle = Throttle(most, seed=0)
    for _ in range(20_000):
        wanted = throttle.wants()
        throttle.answered(1.0)
        if wanted:
            throttle.passed(3.0)

    assert throttle.measuring <= most * throttle.answering
    assert throttle.measuring >= 0.8 * most * throttle.answering


def test_the_share_follows_what_answers_and_passes_take():
    throttle = Throttle(0.05, seed=0)
    draw = random.Random(0)  # noqa: S311 - a test's coin
    waiting = []
    for number in range(30_000):
        slower = 1 + 4 * (number > 10_000)  # another machine's load, say
        if throttle.wants():
            waiting.append(draw.uniform(1, 6) * slower)
        throttle.answered(draw.uniform(0.5, 1.5))
        if waiting and draw.random() < 0.3:
            throttle.passed(waiting.pop())
        # what waits may still take more than the mean
        assert throttle.measuring <= 0.05 * throttle.answering + 6 * 5 * (1 + len(waiting))

    assert 0.03 < throttle.measuring / throttle.answering <= 0.051


def test_the_first_pass_is_waited_for_before_there_is_another():
    throttle = Throttle(1e9, seed=0)
    throttle.answered(1.0)

    assert throttle.wants()
    assert not throttle.wants()
    throttle.passed(1.0)
    assert [throttle.wants() for _ in range(MOST_WAITING + 1)] == [True] * MOST_WAITING + [False]


def test_requests_wait_for_others_unless_there_is_time_for_all():
    scarce, plenty = Throttle(0.05, seed=0), Throttle(20, seed=0)
    for throttle in (scarce, plenty):
        throttle.answered(1.0)
        throttle.passed(10.0)
    together = []
    for _ in range(5):
        together.append(next(n for n in range(1, 99) if scarce.due(n)))
        scarce.passed(10.0, together[-1])

    assert together == [2, 4, 8, MOST_TOGETHER, MOST_TOGETHER]
    assert [plenty.due(waiting) for waiting in (0, 1)] == [False, True]


# --- requests that share a pass -------------------------------------------------------------------


def shared(model, inputs, wanted=None):
    """Return the passes of requests that wait together, until none waits."""
    passes = SharedPasses(model, wanted or Attribution())
    waiting, made = [copied((x,), {}) for x in inputs], []
    while waiting:
        mine = passes.of_one(waiting, MOST_TOGETHER)
        waiting = [one for one in waiting if not any(one is other for other in mine)]
        made.append(list(passes.made(mine)))
    return made


def in_all(made):
    stats = [one.stats for passes in made for one in passes if one.stats is not None]
    return functools.reduce(operator.add, stats)


def test_requests_that_share_a_pass_are_measured_as_they_are_alone():
    model, inputs = network(), requests(2 * MOST_TOGETHER + 3)
    made = shared(model, inputs)

    assert [sum(one.requests for one in passes) for passes in made] == [16, 16, 3]
    assert [len(passes) for passes in made] == [2, 1, 1]  # first it is tried whether they may
    assert_close(in_all(made), calibrate(model, inputs), rtol=1e-6)


class Steps(nn.Module):
    """Takes steps, samples and features: a request's first axis is no samples."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.GRU(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.hidden(x)[0])


class Fixed(nn.Module):
    """Takes two samples and no more."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(x.reshape(1, 8)).expand(2, 3)


class Centred(nn.Module):
    """Compares the samples of a request with each other."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x - x.mean(0))


@pytest.mark.parametrize(
    ("kind", "shape"), [(Steps, (6, 2, 4)), (Fixed, (2, 4)), (Centred, (2, 4))]
)
def test_requests_that_would_change_each_other_are_measured_alone(kind, shape):
    model = random_(kind())
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=draw) for _ in range(3)]
    passes = SharedPasses(model, Attribution(output="norm"))
    waiting = [copied((x,), {}) for x in inputs]
    made = list(passes.made(passes.of_one(waiting, MOST_TOGETHER)))

    assert [one.requests for one in made] == [0, 1, 1, 1]
    assert passes.of_one(waiting, MOST_TOGETHER) == waiting[:1]  # from now on
    assert_close(in_all([made]), calibrate(model, inputs, output="norm"))


def test_of_requests_that_share_a_pass_a_damaged_one_spoils_no_other():
    model, inputs = network(), requests(5)
    inputs[2] = torch.full_like(inputs[2], float("nan"))
    made = shared(model, [*inputs, *requests(4, seed=1)])

    failures = [one.failure for passes in made for one in passes if one.failure]
    assert len(failures) == 1
    assert "NaN" in failures[0]
    good = [x for x in inputs if x.isfinite().all()]
    assert_close(in_all(made), calibrate(model, [*good, *requests(4, seed=1)]), rtol=1e-6)


def test_requests_of_other_kinds_go_in_other_passes():
    model = network()
    whole, half = torch.ones(2, 4), torch.ones(2, 1, 4)
    made = shared(model, [whole, half, whole, half, torch.ones(2, 4)])

    assert [sum(one.requests for one in passes) for passes in made] == [3, 2]


def test_what_waits_is_measured_when_it_is_time_to_save_at_the_latest():
    with Recalibrator(network(), max_overhead=1e-9, save_every=0.02) as answer:
        for _ in range(2):
            answer(torch.ones(1, 4))
        answer._throttle.waiting += 1
        answer._waiting.append((copied((torch.ones(1, 4),), {}), 0.0))
        with answer._changed:
            answer._changed.notify()
        for _ in range(500):
            if answer.observed().measured:
                break
            threading.Event().wait(0.01)

        assert answer.observed().measured


# --- answers and stats --------------------------------------------------------------------------


def test_answers_are_those_of_the_network_and_its_modes_are_left_alone():
    model = nn.Sequential(network(), nn.Dropout(0.5)).train()
    inputs = requests(5)
    torch.manual_seed(0)
    wanted = [model(x) for x in inputs]

    with Recalibrator(model, max_overhead=1e-9) as answer:
        torch.manual_seed(0)
        for x, expected in zip(inputs, wanted, strict=True):
            assert torch.equal(answer(x), expected)

    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_a_network_raises_passes_and_the_next_request_is_answered():
    with everything(network()) as answer:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            answer(torch.ones(1, 5))
        answer(torch.ones(1, 4))

    assert answer.observed().measured == 1


def test_stats_are_those_of_all_requests_that_were_measured():
    model, inputs = network(), requests(11)

    assert_close(used(model, inputs, half_life=1e15), calibrate(model, inputs))


def test_a_sample_counts_half_after_as_many_further_ones_as_the_half_life_says():
    model, inputs = network(), requests(11)
    after, expected = 0, None
    for x in reversed(inputs):  # by hand: each is older by all samples that came after
        aged = calibrate(model, [x]).scaled(2 ** -(after / 5))
        expected = aged if expected is None else expected + aged
        after += len(x)

    assert_close(used(model, inputs, half_life=5), expected)


def test_inputs_that_the_network_overwrites_are_measured_as_they_came():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x.mul_(2))

    model, inputs = random_(Overwrites()), requests(3)
    expected = calibrate(model, [x.clone() for x in inputs])

    assert_close(used(model, inputs, half_life=1e15), expected)


def test_requests_under_inference_mode_and_by_keyword_are_measured():
    model = network()
    with everything(model) as answer, torch.inference_mode():
        answer(input=torch.ones(2, 4))

    assert_close(answer.stats(), calibrate(model, [torch.ones(2, 4)]))
    assert answer.observed().failed == 0


def test_of_a_cut_network_the_relevance_of_the_dense_one_is_measured():
    dense, cut = network(), network(width=3)
    x = torch.ones(2, 4)
    with everything(cut, dense=dense) as answer:
        assert torch.equal(answer(x), cut(x))

    assert_close(answer.stats(), calibrate(dense, [x]))


def test_threads_share_it_and_nothing_is_lost():
    model, inputs = network(), requests(40)
    wanted = [model(x) for x in inputs]
    with everything(model, half_life=1e15) as answer:
        found = [None] * len(inputs)

        def work(first):
            for at in range(first, len(inputs), 4):
                found[at] = answer(inputs[at])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seen = answer.observed()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert seen.requests == len(inputs)
    assert 0 < seen.measured <= len(inputs)
    assert answer.blocks()
    assert answer.stats().samples >= seen.measured


def test_a_relevance_pass_that_fails_is_told_and_hurts_no_request(caplog):
    nan = torch.full((1, 4), float("nan"))
    with everything(network()) as answer:
        answer(nan)
    seen = answer.observed()

    assert (seen.requests, seen.measured, seen.failed) == (1, 0, 1)
    assert "NaN" in seen.error
    assert "NaN" in caplog.text
    with pytest.raises(UsageError, match=r"no relevance was measured yet, of 1 requests; .*NaN"):
        answer.stats()


def test_a_request_that_cant_be_copied_is_answered_all_the_same(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    model = network()
    with everything(model) as answer:
        with monkeypatch.context() as patched:
            patched.setattr("flexrel.online.copied", full)
            assert torch.equal(answer(torch.ones(1, 4)), model(torch.ones(1, 4)))
        answer(torch.ones(1, 4))

    assert "could not be copied: out of memory" in answer.observed().error
    assert answer.observed().measured == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_overhead": 0}, "max_overhead=0 must be above 0"),
        ({"half_life": -1}, "half_life=-1"),
        ({"save_every": 0}, "save_every=0"),
        ({"output": "label"}, "needs labels, which requests don't have"),
        ({"rule": "x"}, "'x'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Recalibrator(network(), **options)


def test_its_blocks_tell_requests_of_another_kind_from_those_of_before():
    model = network(width=10)
    draw = torch.Generator().manual_seed(0)

    def traffic(first, last):
        inputs = torch.zeros(16, 16, 4)
        inputs[..., first:last] = torch.randn(16, 16, last - first, generator=draw)
        return list(inputs)

    before = traffic(0, 2)
    then = [calibrate(model, [x]) for x in before[:8]]
    result = flexrel.prune(
        model, calibration=before, budgets=["macs=60%"], criterion="relevance", recover="none"
    )

    def drifted(inputs):
        with everything(model) as answer:
            for x in inputs:
                answer(x)
                while answer.observed().measured < answer.observed().requests:
                    threading.Event().wait(0.001)
        now = answer.blocks()
        assert len(now) == 8
        found = drift(model, result.plan, result.criterion, then, now, shuffles=19)
        return found.significant(0.05)

    assert not drifted(traffic(0, 2))
    assert drifted(traffic(2, 4))


def test_blocks_have_about_as_many_samples_each_however_many_come_at_once():
    model = network()
    blocks = ForgettingBlocks(half_life=400)
    for count in [1] * 8 + [16] * 32 + [1, 16] * 16:
        blocks.add(calibrate(model, [torch.ones(count, 4)]))
    samples = [block.samples for block in blocks.now()]

    assert len(samples) == 8
    assert max(samples) - min(samples) <= 16


# --- the state ----------------------------------------------------------------------------------


def test_a_state_is_saved_at_the_end_and_gone_on_from(tmp_path):
    model, inputs, state = network(), requests(12), tmp_path / "state"
    used(model, inputs[:7], half_life=5, state=state)

    second = used(model, inputs[7:], half_life=5, state=state)

    assert_close(second, used(model, inputs, half_life=5))


def test_a_state_is_saved_on_a_timer(tmp_path):
    state = tmp_path / "state"
    answer = everything(network(), state=state, save_every=0.02)
    answer(torch.ones(1, 4))
    for _ in range(500):
        if state.exists():
            break
        threading.Event().wait(0.01)

    assert state.exists()
    answer.close()


def test_a_state_of_another_network_or_way_to_measure_is_refused(tmp_path):
    state = tmp_path / "state"
    used(network(), requests(2), state=state)

    with pytest.raises(UsageError, match="is the state of another network of fingerprint"):
        Recalibrator(network(width=5), state=state)
    with pytest.raises(UsageError, match=r"rule 'gradient-input' .* asked for is 'epsilon'"):
        Recalibrator(network(), state=state, rule="epsilon")
    with pytest.raises(UsageError, match=r"from output 'predicted', .* from 'norm'"):
        Recalibrator(network(), state=state, output="norm")


def test_a_state_with_any_byte_changed_or_missing_is_refused(tmp_path):
    state = tmp_path / "state"
    used(network(), requests(2), state=state)
    whole = state.read_bytes()
    draw = random.Random(0)  # noqa: S311 - a test's coin
    damaged = [whole[: draw.randrange(len(whole))] for _ in range(10)]
    for _ in range(30):
        at = draw.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])

    for data in (*damaged, b"", whole + b"\0"):
        state.write_bytes(data)
        with pytest.raises(PackError, match="is no state of relevance in use") as caught:
            Recalibrator(network(), state=state)
        assert "\n" not in str(caught.value)


def test_a_save_that_is_killed_at_any_moment_leaves_the_old_state_or_the_new(tmp_path):
    model, state = network(), tmp_path / "state"
    contents = []
    for count in (1, 3):
        blocks = ForgettingBlocks(1e15)
        for x in requests(count):
            blocks.add(calibrate(model, [x]))
        contents.append(encode_blocks(blocks.now()))
    number, killed = 0, True
    while killed:
        number += 1
        state.write_bytes(contents[0])
        killed = killed_before(number, lambda: replace_file(state, contents[1]))
        assert state.read_bytes() in contents
        Recalibrator(model, state=state).close()

    assert number > 2
    assert state.read_bytes() == contents[1]


def test_a_full_disk_is_told_and_the_requests_go_on(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device", "state")

    monkeypatch.setattr("flexrel.online.replace_file", full)
    answer = everything(network(), state=tmp_path / "state", save_every=0.01)
    answer(torch.ones(1, 4))
    for _ in range(500):
        if answer.observed().error:
            break
        threading.Event().wait(0.01)

    assert "No space left on device" in answer.observed().error
    assert torch.equal(answer(torch.ones(1, 4)), network()(torch.ones(1, 4)))
    with pytest.raises(OSError, match="No space left"):
        answer.close()
    assert "No space left" in caplog.text


def test_its_stats_are_what_a_file_of_stats_holds(tmp_path):
    model = network()
    stats = used(model, requests(3))
    stats.save(tmp_path / "stats")

    assert_close(RelevanceStats.load(tmp_path / "stats"), stats)
