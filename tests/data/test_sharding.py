"""Shares of a step: whole batches, in order, none left out."""

from hypothesis import given
from hypothesis import strategies as st

from effopd.data.sharding import WHOLE, Shard, batches_of


@given(rollouts=st.integers(1, 200), batch_size=st.integers(1, 40), count=st.integers(1, 9))
def test_shares_are_the_whole_in_order(rollouts, batch_size, count):
    shards = [Shard(index, count) for index in range(count)]
    assert [row for shard in shards for row in shard.rows(rollouts, batch_size)] == list(range(rollouts))
    batches = [shard.batches(rollouts, batch_size) for shard in shards]
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    for shard in shards:
        rows = shard.rows(rollouts, batch_size)
        assert not rows or (rows.start % batch_size == 0 and (rows.stop % batch_size == 0 or rows.stop == rollouts))


def test_without_shards_a_share_is_everything():
    assert WHOLE.rows(10, 4) == range(10)
    assert batches_of(10, 4) == 3
