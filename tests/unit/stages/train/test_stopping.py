from __future__ import annotations

import os
import signal
import threading

import pytest

from airflow_ml_provider.stages.train.stopping import EXIT, Stopping


@pytest.fixture
def heard():
    """What the handler of before has heard."""
    numbers = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class TestAlone:
    def test_stops_after_the_step_in_which_it_is_told(self, heard):
        stopping = Stopping()
        assert not stopping.due(1)
        terminate()
        assert stopping.due(2)
        assert stopping.due(3)
        with pytest.raises(SystemExit) as ended:
            stopping.end()
        assert ended.value.code == EXIT == 143
        assert heard == []
        stopping.close()
        terminate()
        assert heard == [signal.SIGTERM]

    def test_before_the_first_question_nothing_is_caught(self, heard):
        Stopping()
        terminate()
        assert heard == [signal.SIGTERM]

    def test_told_twice_it_ends_as_it_did_before(self, heard):
        stopping = Stopping()
        stopping.due(1)
        terminate()
        terminate()
        assert heard == [signal.SIGTERM]

    def test_only_the_main_thread_can_listen(self, heard):
        found = []
        thread = threading.Thread(target=lambda: found.append(Stopping().due(1)))
        thread.start()
        thread.join()
        terminate()
        assert (found, heard) == ([False], [signal.SIGTERM])


class TestRanks:
    @pytest.fixture
    def ranks(self, heard):
        store = pytest.importorskip("torch").distributed.HashStore()
        ranks = [Stopping(3, store) for _ in range(3)]
        yield ranks
        for rank in reversed(ranks):
            rank.close()

    def test_all_stop_two_steps_later(self, ranks):
        assert not any(rank.due(4) for rank in ranks)
        ranks[1].told = True
        # Rank 0 was asked before rank 1 spoke, rank 2 after it.
        assert [ranks[i].due(5) for i in (0, 1, 2)] == [False] * 3
        assert [ranks[i].due(6) for i in (2, 0, 1)] == [False] * 3
        assert [rank.at for rank in ranks] == [7] * 3
        assert all(rank.due(7) for rank in ranks)

    def test_the_first_word_counts(self, ranks):
        ranks[2].told = True
        ranks[2].due(5)
        ranks[0].told = True
        ranks[0].due(6)
        assert [rank.due(7) for rank in ranks] == [True] * 3

    def test_those_that_were_not_told_end_with_it(self, ranks, caplog):
        ranks[0].told = True
        for step in (1, 2, 3):
            due = [rank.due(step) for rank in ranks]
        assert all(due)
        for rank, whose in zip(ranks, ("this process", "another rank"), strict=False):
            with pytest.raises(SystemExit) as ended:
                rank.end()
            assert ended.value.code == EXIT
            assert f"ended after the snapshot of step 3: {whose} got SIGTERM" in caplog.text

    def test_without_a_store_nobody_stops(self, heard):
        pytest.importorskip("torch")
        stopping = Stopping(2)
        stopping.told = True
        assert not stopping.due(1)
        stopping.close()
