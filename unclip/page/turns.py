"""Whose turn it is to draw: a visitor's latest click replaces the one before, and few visitors draw at once."""

import threading

PLACES = 2
"""Visitors whose clicks are drawn at once."""


class Turn:
    """One click of a visitor: it waits for a place, works, and ends early once the visitor clicks again."""

    def __init__(self, turns: "Turns", session: str, tab: str):
        self.turns = turns
        self.session = session
        self.tab = tab
        self.has_place = False

    @property
    def successor(self) -> "Turn | None":
        """The visitor's later click, if there is one."""
        latest = self.turns.latest.get(self.session)
        return None if latest is self else latest

    @property
    def is_over(self) -> bool:
        return self.turns.latest.get(self.session) is not self

    def wait(self, seconds: float) -> bool:
        """Wait for a place, in the order of the clicks, for at most so long. Returns whether it is taken."""
        with self.turns.changed:
            self.has_place = self.has_place or self.turns.changed.wait_for(self._take_place, seconds)
        return self.has_place

    def _take_place(self) -> bool:
        if self.is_over:
            return False
        if self.turns.waiting[0] is not self or self.turns.busy >= PLACES:
            return False
        self.turns.waiting.remove(self)
        self.turns.busy += 1
        return True

    def end(self) -> None:
        """Leave the place, or the line."""
        with self.turns.changed:
            if self.has_place:
                self.turns.busy -= 1
                self.has_place = False
            elif self in self.turns.waiting:
                self.turns.waiting.remove(self)
            if not self.is_over:
                del self.turns.latest[self.session]
            self.turns.changed.notify_all()


class Turns:
    """The clicks of all visitors that are drawn, or wait."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.latest: dict[str, Turn] = {}
        """Session -> the visitor's latest click, while it lasts."""
        self.waiting: list[Turn] = []
        self.busy = 0

    def begin(self, session: str, tab: str) -> Turn:
        """Take a visitor's click into the line; their former one is over."""
        with self.changed:
            former = self.latest.get(session)
            if former in self.waiting:
                self.waiting.remove(former)
            turn = Turn(self, session, tab)
            self.latest[session] = turn
            self.waiting.append(turn)
            self.changed.notify_all()
        return turn

    def stop(self, session: str) -> bool:
        """End a visitor's click. Returns whether there was one."""
        with self.changed:
            former = self.latest.pop(session, None)
            if former in self.waiting:
                self.waiting.remove(former)
            self.changed.notify_all()
        return former is not None
