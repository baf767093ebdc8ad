"""What a run tells of its progress."""

from __future__ import annotations


class Observer:
    """Does nothing; a user interface overrides what it shows."""

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        """Work begins.

        Args:
            doing: ``quantize``; ``graft``; ``fetch``; ``compare`` where files are held against each
                other; ``check`` where what was written is read again; ``reference`` where weights
                pass through the reference model.
            done_nbytes: Source bytes that an earlier run has done.
            total_nbytes: Source bytes in all.
        """

    def tell(self, doing: str) -> None:
        """Something goes on that is not counted in bytes.

        Args:
            doing: What, in a line. Told again and again while it lasts.
        """

    def warn(self, text: str) -> None:
        """Something went wrong that a run gets over by itself.

        Args:
            text: What, and what is done about it, in a line. Called from several threads.
        """

    def advance(self, nbytes: int) -> None:
        """More source bytes were read. Called from several threads."""

    def finish_shard(self, file: str, nbytes: int) -> None:
        """An output shard is whole and durable."""
