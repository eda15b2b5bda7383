"""The jobs that wait: gradio's queue, with bounds, so that no visitor blocks or burdens the others."""

from collections import Counter
from typing import Any

from unclip.errors import UserError

JOBS_OF_A_SESSION = 6
JOBS_OF_AN_ADDRESS = 12
JOBS = 48
"""Jobs that wait or run at once: of one open page, of one visitor's machine, of all."""
UNREAD = 300
"""Messages of jobs that their visitors have not fetched yet."""


class Line:
    """Who waits in gradio's queue, which is duck-typed here."""

    def __init__(self, queue: Any):
        self.queue = queue

    def check(self, session: str, address: str) -> None:
        """Raise UserError if this visitor, or all together, have too many jobs to let another one in."""
        waiting = [job for line in self.queue.event_queue_per_concurrency_id.values() for job in line.queue]
        jobs = waiting + [job for jobs in self.queue.active_jobs if jobs for job in jobs]
        sessions = Counter(job.session_hash for job in jobs)
        addresses = Counter(job.request.client.host for job in jobs if job.request.client)
        if sessions[session] >= JOBS_OF_A_SESSION or addresses[address] >= JOBS_OF_AN_ADDRESS:
            raise UserError("you have several jobs waiting here; let them end before you ask for more")
        unread = sum(messages.qsize() for messages in self.queue.pending_messages_per_session.values())
        if len(jobs) >= JOBS or unread >= UNREAD:
            raise UserError("the page is busy with the jobs of others; try again in a minute")

    async def forget(self, session: str) -> None:
        """End the jobs of a visitor who does not listen, and drop the messages that were not fetched."""
        await self.queue.clean_events(session_hash=session)
        self.queue.pending_messages_per_session.pop(session, None)
        self.queue.pending_event_ids_session.pop(session, None)
