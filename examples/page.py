"""The page of `app.py`: how an interview is laid out, and what each button does."""

import html
import os
from collections.abc import Callable


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr
from interview import Interview, Refusal, Visit

from np_trl.data.embeddings import plain_text
from np_trl.models.pairs import SIDES


READERS = ("For you", "For your opposite", "For nobody")
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
    A page that needs nothing but this machine: no fonts, scripts or statistics from elsewhere.

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

    def launch(self, port: int | None = None, **kwargs) -> str:
        """Serve the page to this machine, at the address that is returned."""
        _, address, _ = self.blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
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
            names = ("Neither", "Forget last", "Start anew")
            self.skip, self.forget, self.anew = (gr.Button(name, min_width=80, elem_classes="minor") for name in names)
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
        """Say what each button does: after every step of the visitor, all three readers are written for anew."""
        interview = self.interview
        steps = {
            self.blocks.load: (lambda _: interview.ask(Visit()), []),
            self.first.click: (lambda visit, shown: self.choose(visit, shown, first=True), [self.first]),
            self.second.click: (lambda visit, shown: self.choose(visit, shown, first=False), [self.second]),
            self.skip.click: (interview.skip, []),
            self.forget.click: (interview.forget, []),
            self.anew.click: (lambda _: interview.ask(Visit()), []),
        }
        writing = {
            "fn": refusing(self.write, self.prompt_refusal),
            "inputs": [self.visit, self.prompt],
            "outputs": [*self.texts, self.prompt_refusal],
            "show_progress": "minimal",
        }
        answers = [self.visit, self.question, self.first, self.second, self.standing]
        buttons = [self.skip, self.forget, self.anew]
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
            button.click(lambda text: text, button, self.prompt).success(**writing)

    def choose(self, visit: Visit, shown: str, first: bool) -> Visit:
        """Answer the open question, unless the answer that was clicked is one to the question before."""
        if visit.question is not None and shown not in self._describe_question(visit)[1]:
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
            self.anew: gr.Button(interactive=bool(visit.choices or visit.skipped)),
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
            heading = f"<h2>No more questions</h2><p>You answered {done}. Forget a choice or start anew to be asked again.</p>"
            return heading, ["", ""]
        pair = self.interview.population.pool.pairs[visit.question]
        heading = (
            f"<h2>Question {done + 1} of {self.interview.args.num_questions}</h2><p>Which answer do you like better?</p>"
            f'<p class="prompt">{html.escape(plain_text(pair["prompt"]))}</p>'
        )
        return heading, [plain_text(pair[side]).strip() for side in SIDES]


def refusing(function: Callable[..., dict], notice: gr.HTML) -> Callable[..., dict]:
    """Have a visitor be told why something is refused, and all else on the page stay as it is."""

    def answer(*inputs) -> dict:
        try:
            return {**function(*inputs), notice: ""}
        except Refusal as refusal:
            return {notice: f'<p class="refusal">{html.escape(str(refusal))}</p>'}

    return answer
