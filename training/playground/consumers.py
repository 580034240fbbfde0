"""The playground's WebSocket: one answer for one side, in pieces as the policy writes it.

It runs on the event loop, so that a long answer holds none of the threads that raters' pages need. A message
to the page is one of {"status": TEXT}, {"text": PIECE}, {"error": TEXT} and {"done": true}; the page then
asks for the side anew, whose text the server renders. The page may send "stop": what is there is kept.
"""

import asyncio
import json
import logging

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer

from training.models import ChatSide
from training.playground import answers, chats, servings

log = logging.getLogger(__name__)

NOT_FOUND = 4404
LOOK_SECONDS = 0.4
PATIENCE_SECONDS = 1800  # for a policy to be loaded


class AnswerConsumer(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.accept()
        self.is_stopped = False
        self.writing = asyncio.create_task(self.answer())

    async def disconnect(self, code: int) -> None:
        self.writing.cancel()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data == "stop":
            self.is_stopped = True

    async def answer(self) -> None:
        side = await database_sync_to_async(chats.side_of)(
            self.scope["user"], self.scope["url_route"]["kwargs"]["side_id"]
        )
        if side is None:
            await self.close(code=NOT_FOUND)
            return
        try:
            if side.is_asked:
                await self.write(side)
            await self.tell(done=True)
        except answers.NoAnswer as none:
            await self.tell(error=str(none))
        except Exception:
            log.exception("the socket of side %s ends", side.pk)
            await self.tell(error="The server could not take that. Ask again.")
        await self.close()

    async def write(self, side: ChatSide) -> None:
        await database_sync_to_async(servings.want)(side.policy)
        place = await self.ready(side)
        answer = answers.begin(side)
        pieces = answers.stream(side, place, answer)
        async for piece in pieces:
            await self.tell(text=piece)
            if self.is_stopped:
                break
        await pieces.aclose()  # the policy stops at its next token
        answer.tokens = answer.tokens or answer.pieces
        message = answer.message("stopped" if self.is_stopped and not answer.finish else "")
        await database_sync_to_async(chats.store_answer)(side=side, answer=message)
        await database_sync_to_async(servings.still_used)(side.policy_id)

    async def ready(self, side: ChatSide) -> servings.Place:
        """Where the policy answers, once it does. Raises NoAnswer."""
        end, told = asyncio.get_running_loop().time() + PATIENCE_SECONDS, ""
        while not self.is_stopped:
            place = await database_sync_to_async(servings.place_of)(side.policy_id)
            if place.state == "ready":
                return place
            if place.state == "failed":
                raise answers.NoAnswer(place.message)
            if asyncio.get_running_loop().time() > end:
                raise answers.NoAnswer("The policy was not loaded in half an hour. Look at the worker's log.")
            if place.message != told:
                told = place.message
                await self.tell(status=told)
            await asyncio.sleep(LOOK_SECONDS)
        raise answers.NoAnswer("Stopped before it began.")

    async def tell(self, **what: str | bool) -> None:
        await self.send(text_data=json.dumps(what))
