"""An event that is cancelled ends as one that is complete. Gradio's page takes it for a failure.

When Stop cancels an answer, the server sends that it is complete, but with no list of data
(`output={}`). The page looks into that list all the same, fails, and notes an error for the event.
The answer to the request to cancel puts that right, if it comes later; on a busy page it comes
sooner. Then the error stays, and where an error is shown (always in a Chatbot) "Error" covers what
came so far, and no click gets through.
"""

from __future__ import annotations

from typing import Any

from gradio.server_messages import ProcessCompletedMessage


def mend_cancelling() -> None:
    """Send an empty list of data with the end of what was cancelled: it changes nothing, and
    nothing fails."""
    plain: Any = ProcessCompletedMessage.model_dump
    if hasattr(plain, "mended"):
        return

    def model_dump(self: ProcessCompletedMessage, **how: Any) -> dict[str, Any]:
        message: dict[str, Any] = plain(self, **how)
        if self.success and not self.output:
            message["output"] = {"data": []}
        return message

    model_dump.mended = True  # type: ignore[attr-defined]
    ProcessCompletedMessage.model_dump = model_dump  # type: ignore[method-assign, assignment]
