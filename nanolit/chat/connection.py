"""uvicorn's connections with patience that ends, and JSON for what is no HTTP.

uvicorn waits for ever for the rest of a request's head, so a thousand clients that send half of one would
take every file that the server may open.
"""

import json
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from nanolit.chat.guard import error_body

HEAD_SECONDS = 30.0  # that a request's first line and headers may take


class Connection(H11Protocol):
    """Closes unless a whole head comes in every HEAD_SECONDS in which nothing is being answered."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._look_again()

    def _look_again(self) -> None:
        self.loop.call_later(HEAD_SECONDS, self._close_if_silent, self.cycle)

    def _close_if_silent(self, before: RequestResponseCycle | None) -> None:
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        elif not self.transport.is_closing():
            self._look_again()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be read as HTTP, unless another request is being answered, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(msg.rstrip("."))).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            start = h11.Response(status_code=400, headers=[*headers, ("connection", "close")])
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(cast(bytes, self.conn.send(event)))
        self.transport.close()
