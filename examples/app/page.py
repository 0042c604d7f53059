"""The page of `app.py`: how an interview is laid out, what each button does, and whom the page answers."""

import asyncio
import html
import json
import os
import re
from collections.abc import Callable


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr
from interview import Interview, Refusal, Visit
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from np_trl.data.embeddings import plain_text
from np_trl.models.texts import SIDES


READERS = ("For you", "For your opposite", "For nobody")
FAILURE = "This failed, and nothing has changed. Try again. What went wrong is in the log of the program that serves the page."
MAX_PENDING = 3  # calls of one visitor that are not done yet, so that everyone waits for a few of each other visitor
MAX_QUEUE = 100  # calls of all visitors that have not begun
MAX_VISITORS = 1000  # who are remembered at a time, at about 0.2 MB each
MAX_BYTES = 1_000_000  # of a call: far more than the longest prompt, which is refused in better words
# all that the page asks for; Gradio also takes uploads, runs functions past the queue and serves files and statistics
CALL = "/gradio_api/queue/join"
ADDRESSES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"} | {
    f"/gradio_api/{name}" for name in ("info", "queue/data", "startup-events")
}
FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/")
# fonts of the system, since others would be fetched, and colours that can be read
THEME = gr.themes.Soft(
    primary_hue="orange",
    neutral_hue="slate",
    font=gr.themes.Font("system-ui"),
    font_mono=gr.themes.Font("monospace"),
).set(
    block_title_text_color="*primary_800",
    block_title_background_fill="transparent",
    block_border_width="1px",
    button_border_width="1px",
    button_secondary_border_color="*neutral_300",
    input_border_width="1px",
)
CSS = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important}
.html-container {padding: 0 !important}
.answer {white-space: pre-wrap; text-align: left; justify-content: flex-start; font-weight: 400; line-height: 1.5}
.prompt {font-size: 1.2rem; font-weight: 600}
.written {white-space: pre-wrap; overflow-wrap: anywhere}
.map img {width: 100%; max-width: 520px; display: block; margin: 0 auto 0.5rem; border-radius: 8px}
.minor {font-size: 0.875rem; font-weight: 400; min-height: 2.5rem; padding: 0.25rem !important}
.minor:disabled {background: transparent !important}
textarea {border: 1px solid var(--border-color-primary) !important; border-radius: 6px !important}
.refusal {color: #9a3412; background: #ffedd5; padding: 0.5rem 0.75rem; border-radius: 6px}
.send {background: #9a3412; border-color: #9a3412; color: white; align-self: flex-end; max-height: 2.75rem}
.block:has(> .html-container > [role=alert]:empty) {display: none}
:focus-visible {outline: 3px solid #1d4ed8 !important; outline-offset: 2px}
@media (min-width: 768px) {.written {min-height: 8em}}
"""
INTRODUCTION = """
<h1>A few choices, and it writes for you</h1>
<p>Choose between answers. After each choice one forward pass infers who you are; nothing is trained, and nothing is kept.</p>
"""
EXPLANATION = """
<h2>One prompt, three readers</h2>
<p>Your opposite made each of your choices the other way round. Of nobody no choice is known.</p>
"""
# have a screen reader say what changes
POLITE = "element.setAttribute('aria-live', 'polite')"
ALERT = "element.setAttribute('role', 'alert')"


class InterviewPage:
    """
    A page that needs nothing but this machine, which alone can open it: no fonts, scripts or statistics from elsewhere.

    Args:
        interview ([`Interview`]):
            What is asked, shown and written.

    Attributes:
        blocks ([`~gradio.Blocks`]):
            The page.
    """

    def __init__(self, interview: Interview):
        self.interview = interview
        with gr.Blocks(title="A few choices, and it writes for you", analytics_enabled=False) as self.blocks:
            self.visit = gr.State(Visit())
            gr.HTML(INTRODUCTION)
            with gr.Row():
                with gr.Column(min_width=300):
                    self._lay_out_question()
                with gr.Column(min_width=300):
                    self.standing = gr.HTML(elem_classes="map", container=True, padding=True, js_on_load=POLITE)
            gr.HTML(EXPLANATION)
            self._lay_out_prompt()
            with gr.Row():
                self.texts = [self._lay_out_text() for _ in READERS]
            self._connect()
        self.blocks.queue(max_size=MAX_QUEUE, default_concurrency_limit=1, api_open=False)

    def launch(self, port: int | None = None, **kwargs) -> str:
        """Serve the page to this machine, at the address that is returned, whatever Gradio's variables of the environment say."""
        door = [
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
            Middleware(Door, self.blocks),
        ]
        _, address, _ = self.blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            root_path="",
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=1,  # nothing here takes files
            state_session_capacity=MAX_VISITORS,
            app_kwargs={"middleware": door},
            theme=THEME,
            css=CSS,
            footer_links=[],
            run_history=False,  # choices are kept nowhere
            ssr_mode=False,
            **kwargs,
        )
        return address

    def _lay_out_question(self) -> None:
        self.question = gr.HTML(js_on_load=POLITE)
        self.first, self.second = (gr.Button(elem_classes="answer") for _ in range(2))
        with gr.Row():
            names = ("Neither", "Forget last", "Start over")
            self.skip, self.forget, self.restart = (
                gr.Button(name, min_width=80, elem_classes="minor") for name in names
            )
        self.question_refusal = gr.HTML(js_on_load=ALERT)

    def _lay_out_prompt(self) -> None:
        prompts = self.interview.prompts()
        with gr.Row():
            self.prompt = gr.Textbox(prompts[0], label="Prompt", max_lines=6, scale=6, min_width=200)
            self.send = gr.Button("Write", variant="primary", min_width=80, elem_classes="send")
        self.prompt_refusal = gr.HTML(js_on_load=ALERT)
        with gr.Row():
            self.examples = [gr.Button(text, min_width=140, elem_classes="minor") for text in prompts]

    def _lay_out_text(self) -> gr.HTML:
        with gr.Column(min_width=250):
            return gr.HTML(container=True, padding=True)

    def _connect(self) -> None:
        """Say what each button does: after every step of the visitor, all three readers are written for again."""
        interview = self.interview
        steps = {
            self.blocks.load: (lambda _: interview.ask(Visit()), []),
            self.first.click: (lambda visit, shown: self.choose(visit, shown, first=True), [self.first]),
            self.second.click: (lambda visit, shown: self.choose(visit, shown, first=False), [self.second]),
            self.skip.click: (interview.skip, []),
            self.forget.click: (interview.forget, []),
            self.restart.click: (lambda _: interview.ask(Visit()), []),
        }
        writing = {
            "fn": refusing(self.write, self.prompt_refusal),
            "inputs": [self.visit, self.prompt],
            "outputs": [*self.texts, self.prompt_refusal],
            "show_progress": "minimal",
        }
        answers = [self.visit, self.question, self.first, self.second, self.standing]
        buttons = [self.skip, self.forget, self.restart]
        for event, (step, inputs) in steps.items():
            show = refusing(lambda *inputs, step=step: self.show(step(*inputs)), self.question_refusal)
            event(
                show,
                [self.visit, *inputs],
                [*answers, *buttons, self.question_refusal],
                show_progress="minimal",
                concurrency_id="step",  # one after the other, so that each sees what the one before it changed
            ).success(**writing)
        for event in (self.prompt.submit, self.send.click):
            event(**writing)
        for button in self.examples:
            button.click(lambda text=button.value: text, None, self.prompt).success(**writing)

    def choose(self, visit: Visit, shown: str, first: bool) -> Visit:
        """Answer the open question, unless the answer that was clicked is one to the question before."""
        if visit.question is not None and shown != self._describe_question(visit)[1][0 if first else 1]:
            raise Refusal("That question has been answered. Choose again.")
        return self.interview.choose(visit, first)

    def show(self, visit: Visit) -> dict:
        """What is seen of a visit, by component."""
        is_open, place = visit.question is not None, self.interview.stand(visit)
        heading, answers = self._describe_question(visit)
        return {
            self.visit: visit,
            self.question: heading,
            self.first: gr.Button(answers[0], visible=is_open),
            self.second: gr.Button(answers[1], visible=is_open),
            self.skip: gr.Button(interactive=is_open),
            self.forget: gr.Button(interactive=bool(visit.choices)),
            self.restart: gr.Button(interactive=bool(visit.choices or visit.skipped)),
            self.standing: f'<h2>Where you stand</h2><img src="{place.image}" alt="{html.escape(place.description)}">'
            f"<p>{html.escape(place.summary)}</p>",
        }

    def write(self, visit: Visit, prompt: str) -> dict:
        """What is written for each reader, by component."""
        written = self.interview.write(visit, prompt)
        return {
            box: f'<h3>{reader}</h3><p class="written">{html.escape(text)}</p>'
            for box, reader, text in zip(self.texts, READERS, written, strict=True)
        }

    def _describe_question(self, visit: Visit) -> tuple[str, list[str]]:
        """The heading of the open question, and its two answers."""
        done = len(visit.choices)
        if visit.question is None:
            heading = f"<h2>No more questions</h2><p>You answered {done}. Forget a choice or start over to be asked again.</p>"
            return heading, ["", ""]
        pair = self.interview.population.pool.pairs[visit.question]
        heading = (
            f"<h2>Question {done + 1} of {self.interview.args.num_questions}</h2><p>Which answer do you like better?</p>"
            f'<p class="prompt">{html.escape(plain_text(pair["prompt"]))}</p>'
        )
        return heading, [plain_text(pair[side]).strip() for side in SIDES]


def refusing(function: Callable[..., dict], notice: gr.HTML) -> Callable[..., dict]:
    """Show a visitor why something is refused or has failed, and leave the rest of the page unchanged."""

    def answer(*inputs) -> dict:
        try:
            return {**function(*inputs), notice: ""}
        except Refusal as refusal:
            return {notice: f'<p class="refusal">{html.escape(str(refusal))}</p>'}
        except Exception as error:
            raise gr.Error(FAILURE) from error  # Gradio writes the trace to the log

    return answer


class Door:
    """
    Lets in what the page itself asks for, and a few calls of each visitor at a time.

    Args:
        app (`Callable`):
            The application behind it.
        blocks ([`~gradio.Blocks`]):
            The page, whose functions are called.
    """

    def __init__(self, app: ASGIApp, blocks: gr.Blocks):
        self.app, self.blocks, self.entering = app, blocks, asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say why it is refused."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        try:
            check_address(request)
            if request.method != "POST":
                return await self.app(scope, receive, send)
            call = self.check_call(await read_body(request))
            async with self.entering:  # one by one, because Gradio counts a call only when it is in the queue
                self.check_turn(call["session_hash"])
                await self.app(scope, replay(json.dumps(call).encode(), receive), send)
        except HTTPException as refusal:
            await JSONResponse({"detail": refusal.detail}, refusal.status_code)(scope, receive, send)

    def check_call(self, body: bytes) -> dict:
        """Return what a call says of its function, its inputs and its visitor, if there is such a function of such inputs."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            call = None
        match call:
            case {"fn_index": int(number), "data": [*data], "session_hash": str(visitor)} if number in self.blocks.fns:
                inputs = self.blocks.fns[number].inputs
                fits = len(data) == len(inputs) and all(map(may_be, inputs, data))
                if fits and re.fullmatch(r"[\w-]{1,64}", visitor, re.ASCII):
                    return {"fn_index": number, "data": data, "session_hash": visitor}
        raise HTTPException(
            400,
            f"This is no call of the page's. It takes `fn_index`, one of its {len(self.blocks.fns)} functions, in `data` a text "
            "or null for each of that function's inputs, and `session_hash`. Reload the page.",
        )

    def check_turn(self, visitor: str) -> None:
        """Refuse a visitor who waits for as much as one may."""
        # of Gradio's queue nothing public says who waits
        pending = [event.session_hash for event in self.blocks._queue.event_ids_to_events.values()]
        if pending.count(visitor) >= MAX_PENDING:
            raise HTTPException(429, f"You wait for {MAX_PENDING} things already. Try again when one of them is done.")


def check_address(request: Request) -> None:
    """Refuse what another web site asks for through a visitor's browser, and what the page has no use for."""
    origin, path = request.headers.get("origin"), request.url.path
    if origin not in (None, f"http://{request.headers['host']}"):
        raise HTTPException(403, "This page is not for other web sites. Open it at its own address.")
    if request.method == "POST":
        is_served = path == CALL
    else:
        is_served = request.method in ("GET", "HEAD") and (path in ADDRESSES or path.startswith(FOLDERS))
    if not is_served:
        raise HTTPException(404, "There is nothing here. The page takes no files and has no other interface.")


async def read_body(request: Request) -> bytes:
    """Read what was sent, unless it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"This is more than {MAX_BYTES:,} bytes. Shorten the prompt.")
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Have an application receive a body that was read before it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def may_be(component: gr.blocks.Block, value) -> bool:
    """Whether a page could send this value of a component. What the server itself remembers is never sent."""
    return value is None or (isinstance(value, str) and not component.stateful)
