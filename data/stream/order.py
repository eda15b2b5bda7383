"""The order in which the shards of a stream are read, and who reads which."""

from dataclasses import dataclass, replace

from data.shuffling import permutation


@dataclass(frozen=True)
class ShardOrder:
    """The endless order of shards: epoch after epoch, each a new permutation. A turn is a place in it.

    `datasets` splits a list of shards by rank and by worker. A round is the next list: equally many shards for each
    reader, about an epoch together, so that every shard is read once in each epoch, whatever the number of readers.
    """

    count: int
    """Shards of the stream."""
    seed: int
    ranks: int
    workers: int
    """Readers of each rank."""
    left_over: tuple[int, ...] = ()
    """Turns of a run with another number of readers that come first."""
    first: int = 0
    """The turn after those."""

    @property
    def share(self) -> int:
        """Shards that each reader takes in a round."""
        return max(1, self.count // (self.ranks * self.workers))

    @property
    def round_size(self) -> int:
        return self.share * self.ranks * self.workers

    def turn(self, place: int) -> int:
        """The turn at a place counted from where this order begins."""
        return self.left_over[place] if place < len(self.left_over) else self.first + place - len(self.left_over)

    def shard(self, place: int) -> int:
        """The number of the shard at a place."""
        epoch, offset = divmod(self.turn(place), self.count)
        return int(permutation(self.count, self.seed, epoch)[offset])

    def round_shards(self, number: int) -> list[int]:
        """The numbers of the shards of a round, for all readers together."""
        return [self.shard(place) for place in range(number * self.round_size, (number + 1) * self.round_size)]

    def place(self, rank: int, worker: int, number: int, index: int) -> int:
        """The place of a reader's shard: the one with an index in a round, as `datasets` splits the round's list."""
        return number * self.round_size + rank + self.ranks * (worker + self.workers * index)

    def after(self, finished: list[list[tuple[int, int]]], ranks: int, workers: int) -> "ShardOrder":
        """The order for other numbers of readers: first the shards that are not finished, then those not begun.

        Args:
            finished: [rank][worker] -> the round that this reader is in, and how many shards of it are finished.
        """
        done = set()
        begun = 0
        for rank, of_rank in enumerate(finished):
            for worker, (number, count) in enumerate(of_rank):
                mine = [self.place(rank, worker, n, i) for n in range(number) for i in range(self.share)]
                mine += [self.place(rank, worker, number, i) for i in range(count)]
                done.update(mine)
                begun = max(begun, self.place(rank, worker, number, min(count, self.share - 1)) + 1)
        rest = tuple(self.turn(place) for place in range(begun) if place not in done)
        return replace(self, ranks=ranks, workers=workers, left_over=rest, first=self.turn(begun))
