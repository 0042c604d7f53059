"""The page where a person can try a policy: what it asks, shows and writes, and the page itself in a browser."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from np_trl import UserProfile
from np_trl.data.style_grammar import detect_attributes
from np_trl.users.choices import reverse

from .testing_utils import ROOT, style_rows, tiny_policy, tiny_tokenizer


pytest.importorskip("gradio", reason="the page needs the extra `app`")
pytest.importorskip("sklearn", reason="the page needs the extra `app`")
webdriver = pytest.importorskip("selenium.webdriver", reason="a browser is driven by selenium, of the extra `test`")

from app import ScriptArguments, load_interview  # noqa: E402
from gradio_client import Client  # noqa: E402
from interview import Interview, InterviewArguments, Refusal, Visit  # noqa: E402
from page import InterviewPage  # noqa: E402
from population import Population  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402


pytestmark = pytest.mark.xdist_group("page")  # one policy and one browser for all
SMALL = {"num_samples": 8, "max_new_tokens": 40}
CHROME_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def people(policy, tokenizer, dataset=None, **kwargs) -> Population:
    arguments = {"num_choices": 4, "num_users": 16, "pool_size": 8, "group_column": "group", "seed": 0}
    return Population(policy, tokenizer, style_rows() if dataset is None else dataset, **{**arguments, **kwargs})


@pytest.fixture
def interview(tmp_path) -> Interview:
    policy, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    torch.nn.init.normal_(policy.model.context_encoder.memory.population.weight, std=0.1)
    args = InterviewArguments(num_questions=3, num_samples=4, max_new_tokens=6)
    return Interview(policy, tokenizer, people(policy, tokenizer), args)


def test_people_stand_where_their_first_choices_place_them(interview):
    population, rows = interview.population, style_rows()
    first = [row for row in rows if row["user_id"] == rows[0]["user_id"]][:4]
    expected = interview.policy.infer_user(first, interview.tokenizer)
    assert len(population) == 16
    torch.testing.assert_close(population.latents[:1], expected, rtol=1e-4, atol=1e-5)
    assert population.nearest_group(expected) == rows[0]["group"]
    plane = population.project(population.latents)
    assert plane.shape == (16, 2) and np.allclose(plane.mean(axis=0), 0, atol=1e-5)


def test_every_question_is_another_one_and_its_order_tells_nothing(tmp_path):
    policy, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    rows = style_rows()
    dataset = rows.select([*range(len(rows)), *range(len(rows))])  # every pair twice
    pairs = people(policy, tokenizer, dataset, pool_size=64).pool.pairs
    assert len({frozenset((pair["chosen"], pair["rejected"])) for pair in pairs}) == 64
    chosen = set(rows["chosen"])
    assert 16 < sum(pair["chosen"] in chosen for pair in pairs) < 48


def test_the_map_is_an_image_that_fetches_nothing(interview):
    visit = interview.choose(interview.ask(Visit()), first=True)
    place = interview.stand(visit)
    kind, _, data = place.image.partition(";base64,")
    drawing = base64.b64decode(data).decode()
    assert kind == "data:image/svg+xml"
    assert all(f">{name}<" in drawing for name in ("you", "your opposite", "nobody", "left open"))
    assert 'href="http' not in drawing and "url(http" not in drawing
    latents = torch.cat([user.latents for user in interview.readers(visit)])
    for x, y in interview.population.project(latents):
        assert f"({x:.1f}, {y:.1f})" in place.description
    assert "% of the uncertainty" in place.summary and "The nearest of 16 people: " in place.summary


def test_people_need_not_be_of_a_kind(interview):
    rows = style_rows().remove_columns(["group", "style"])
    interview.population = people(interview.policy, interview.tokenizer, rows)
    place = interview.stand(interview.choose(interview.ask(Visit()), first=True))
    assert "nearest" not in place.summary and place.image.startswith("data:")


def test_questions_are_asked_once_until_there_are_enough_answers(interview):
    visit, asked = interview.ask(Visit()), []
    for first in (True, False, True):
        asked.append(visit.question)
        visit = interview.choose(visit, first)
    assert len(set(asked)) == 3 and visit.question is None
    assert visit.choices == ((asked[0], True), (asked[1], False), (asked[2], True))
    for step in (interview.skip, lambda visit: interview.choose(visit, first=True)):
        with pytest.raises(Refusal, match="no open question"):
            step(visit)


def test_a_skipped_question_is_not_asked_again_and_the_pool_may_be_used_up(interview):
    visit, asked = interview.ask(Visit()), []
    while visit.question is not None:
        asked.append(visit.question)
        visit = interview.skip(visit)
    assert sorted(asked) == list(range(8)) and visit.choices == ()
    assert "Each dot is one of 16 people" in interview.stand(visit).summary


def test_a_forgotten_choice_leaves_nothing_behind(interview):
    start = interview.ask(Visit())
    before = interview.choose(start, first=True)
    after = interview.choose(before, first=False)
    assert interview.forget(after) == before and interview.forget(before) == start
    assert interview.write(interview.forget(after), "How do I fix the bike?") == interview.write(
        before, "How do I fix the bike?"
    )
    with pytest.raises(Refusal, match="no choice to forget"):
        interview.forget(start)


def test_the_readers_are_the_visitor_the_opposite_and_nobody(interview):
    visit = interview.choose(interview.choose(interview.ask(Visit()), first=True), first=False)
    pairs = interview.pairs(visit)
    assert pairs[1] == reverse(interview.population.pool.pairs[visit.choices[1][0]])
    you, opposite, nobody = interview.readers(visit)
    swapped = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
    assert torch.equal(opposite.latents, UserProfile(interview.policy, interview.tokenizer, swapped).latents)
    assert len(you) == len(opposite) == 2 and len(nobody) == 0
    texts = interview.write(visit, "How do I fix the bike?")
    assert len(texts) == 3 and texts == interview.write(visit, "How do I fix the bike?")


@pytest.mark.parametrize("field", ["num_questions", "num_samples", "max_new_tokens"])
def test_an_interview_without_anything_is_refused(field):
    with pytest.raises(ValueError, match=f"`{field}=0` must be at least"):
        InterviewArguments(**{field: 0})


def test_visitors_at_the_same_time_get_what_each_would_get_alone(interview):
    start = interview.ask(Visit())
    visits = [start, interview.choose(start, first=True), interview.choose(start, first=False)] * 4

    def serve(visit: Visit) -> tuple:
        return interview.choose(visit, first=True), interview.write(visit, "How do I fix the bike?")

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert list(pool.map(serve, visits)) == [serve(visit) for visit in visits]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "Type a prompt"),
        (" \n ", "Type a prompt"),
        ("x" * 100_000, "has 100,000 characters. Shorten it to 1,000"),
        ("fix\x00the bike", "cannot be printed"),
        ("fix \ud800 the bike", "cannot be printed"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(interview, prompt, message):
    with pytest.raises(Refusal, match=message):
        interview.write(Visit(), prompt)


def test_questions_may_be_conversations(tmp_path):
    policy, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    rows = style_rows().map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
    )
    args = InterviewArguments(num_questions=3, num_samples=4, max_new_tokens=6)
    interview = Interview(policy, tokenizer, people(policy, tokenizer, rows), args)
    visit = interview.choose(interview.ask(Visit()), first=True)
    assert len(interview.write(visit, interview.prompts()[0])) == 3
    read = interview._read("How do I fix the bike?")["input_ids"]
    assert read.equal(tokenizer("How do I fix the bike?", add_special_tokens=False, return_tensors="pt")["input_ids"])


def test_what_cannot_be_shown_is_an_error(interview, tmp_path):
    with pytest.raises(ValueError, match="There is no .*users.parquet.*--dataset"):
        load_interview(ScriptArguments(model_name_or_path=str(tmp_path)))
    with pytest.raises(ValueError, match="has 2 users, but a plane takes 3"):
        people(interview.policy, interview.tokenizer, style_rows(num_users=2))
    with pytest.raises(ValueError, match="`num_questions=8` must be less than the 8 pairs of the pool"):
        Interview(
            interview.policy, interview.tokenizer, interview.population, replace(interview.args, num_questions=8)
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Interview:
    """The demo, trained for less long, and its page."""
    path = tmp_path_factory.mktemp("demo")
    recipe = yaml.safe_load((ROOT / "examples" / "configs" / "np_dpo_style.yaml").read_text())
    sizes = {"num_train_users": 208, "num_eval_users": 32, "reward_steps": 400, "max_steps": 80, "num_threads": 1}
    sizes |= {"eval_num_contexts": [10], "eval_num_draws": 1}
    del recipe["baselines"]
    (path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **sizes, "output_dir": "policy"}))
    command = [sys.executable, str(ROOT / "examples" / "np_dpo.py"), "--config", "recipe.yaml"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_interview(ScriptArguments(model_name_or_path=str(path / "policy"), pool_size=24, **SMALL))


@pytest.fixture(scope="module")
def url(trained):
    page = InterviewPage(trained)
    yield page.launch(prevent_thread_lock=True, quiet=True)
    page.blocks.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*CHROME_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


class Page:
    """The page as a visitor sees it, in the browser's current window."""

    def __init__(self, browser, url: str, width: int = 1200, height: int = 1000):
        self.browser = browser
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(url)
        self.settle()

    def find(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def button(self, name: str):
        return self.browser.find_element(By.XPATH, f"//button[normalize-space()='{name}']")

    @property
    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    @property
    def shown(self) -> list[str]:
        """Heading, question, answers, place and what is written, all at one moment."""
        script = "return [...document.querySelectorAll('h2, .prompt, button.answer, .map p, .written')].map(e => e.innerText)"
        return self.browser.execute_script(script)

    @property
    def written(self) -> list[str]:
        return [f" {element.text}" for element in self.find(".written")]

    @property
    def refusals(self) -> list[str]:
        return [element.text for element in self.find("[role=alert] .refusal")]

    def settle(self, timeout: float = 90) -> None:
        """Wait until the three readers are written for and nothing has been going on for a while."""
        quiet_since, end = None, time.monotonic() + timeout
        while time.monotonic() < end:
            if self.find(".pending, .generating") or len(self.find(".written")) < 3:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > 0.6:
                return
            time.sleep(0.05)
        raise TimeoutError(self.text)

    def press(self, element) -> None:
        element.click()
        self.settle()

    def choose(self, style: tuple[int, ...]) -> None:
        """Answer as a user of the style population does, and skip what leaves it indifferent."""
        while True:
            answers = self.find("button.answer")
            utilities = [np.dot(style, detect_attributes(f" {answer.text}")) for answer in answers]
            if utilities[0] != utilities[1]:
                return self.press(answers[int(np.argmax(utilities))])
            self.press(self.button("Neither"))

    def type(self, text: str) -> None:
        (box,) = self.find("textarea")
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.browser.execute_script(script, box, text)  # as when it is pasted
        box.send_keys(Keys.ENTER)
        self.settle()


def agreement(style: tuple[int, ...], texts: list[str]) -> float:
    """Share of attributes as wanted less that of their opposites."""
    return float(np.mean([np.multiply(style, detect_attributes(text)) for text in texts]))


def test_after_ten_choices_the_answers_have_changed_towards_the_chooser(browser, url, trained):
    page, style = Page(browser, url), (1, 1, 1, -1)
    for number in range(10):
        assert f"Question {number + 1} of 10" in page.text
        page.choose(style)
    assert "You answered 10." in page.text and not page.find("button.answer")
    answers, shown = [], trained.prompts()
    for prompt in trained.prompts(16):
        if prompt in shown:
            page.press(page.button(prompt))
        else:
            page.type(prompt)
        answers.append(page.written)
    you, opposite, nobody = (agreement(style, texts) for texts in zip(*answers, strict=True))
    assert you > 0.5 and you > nobody + 0.25 and opposite < nobody


def test_two_visitors_do_not_see_each_other(browser, url):
    ada = Page(browser, url)
    window, start = browser.current_window_handle, ada.shown
    ada.press(ada.find("button.answer")[0])
    after = ada.shown
    browser.switch_to.new_window("window")
    bob = Page(browser, url)
    assert bob.shown == start != after
    bob.press(bob.find("button.answer")[1])
    other = bob.shown
    browser.close()
    browser.switch_to.window(window)
    assert ada.shown == after != other
    ada.press(ada.button("Forget last"))
    assert ada.shown == start


def test_forgetting_restores_what_was_shown_and_starting_anew_the_start(browser, url):
    page, shown = Page(browser, url), []
    for answer in (0, 1):
        shown.append(page.shown)
        page.press(page.find("button.answer")[answer])
    page.press(page.button("Forget last"))
    assert page.shown == shown[1]
    page.press(page.button("Start anew"))
    assert page.shown == shown[0]
    assert not page.button("Forget last").is_enabled() and not page.button("Start anew").is_enabled()


def test_the_keyboard_is_enough(browser, url):
    page = Page(browser, url)

    def tab_to(name: str, *keys: str, back: bool = False) -> None:
        for _ in range(15):
            focused = browser.switch_to.active_element
            if name in (focused.text, focused.get_attribute("aria-label"), focused.tag_name):
                break
            focused.send_keys(Keys.SHIFT + Keys.TAB if back else Keys.TAB)
        assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for key in keys:
            browser.switch_to.active_element.send_keys(key)
        page.settle()

    start = page.shown
    tab_to(page.find("button.answer")[1].text, Keys.ENTER)
    assert "Question 2 of 10" in page.text
    tab_to("Neither", Keys.SPACE)
    assert "Question 2 of 10" in page.text
    tab_to("textarea", Keys.CONTROL + "a", "How do I paint the boat?", Keys.ENTER)
    assert sum("paint the boat" in text for text in page.written) >= 2
    tab_to("Forget last", Keys.ENTER, back=True)
    assert page.shown[:3] == start[:3]


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser, url):
    page = Page(browser, url, width=375, height=700)
    page.press(page.find("button.answer")[0])
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [375, 375]
    for element in page.find("h1, h2, h3, p, img, button, textarea"):
        box = element.rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 375, element.text


def test_nothing_is_asked_of_the_network(browser, url):
    browser.get_log("performance")
    page = Page(browser, url)
    page.press(page.find("button.answer")[0])
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(sent) > 20
    assert [address for address in sent if not address.startswith((url, "data:", "blob:"))] == []
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_who_does_not_see_it_is_told(browser, url):
    page = Page(browser, url)
    assert [heading.text for heading in page.find("h1")] == ["A few choices, and it writes for you"]
    assert len(page.find("h2")) == 3 and len(page.find("h3")) == 3
    (image,) = page.find(".map img")
    assert image.get_attribute("alt").startswith("A map of 32 people")
    (box,) = page.find("textarea")
    assert box.accessible_name == "Prompt"
    assert all(button.accessible_name for button in page.find("button"))
    live = [element.text for element in page.find("[aria-live=polite]") if element.text]
    assert any("Question 1" in text for text in live) and any("Where you stand" in text for text in live)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "Type a prompt first."),
        ("x" * 100_000, "This prompt has 100,000 characters. Shorten it to 1,000."),
        ("fix\x07the bike", "This prompt has characters that cannot be printed. Type it anew."),
    ],
)
def test_what_is_typed_wrongly_gets_a_message_and_no_trace(browser, url, prompt, message):
    page = Page(browser, url)
    before = page.written
    page.type(prompt)
    assert page.refusals == [message]
    assert page.written == before and "Traceback" not in page.text and "Error" not in page.text
    page.type("<img src=x onerror=alert(1)> How do I fix the bike?")
    assert page.refusals == [] and len(page.written) == 3


def test_an_answer_without_a_question_gets_a_message_too(url):
    # a visitor who never opened the page; functions 0 and 1 are those of its opening, the next is that of the first answer
    outputs = Client(url, verbose=False).predict("Certainly.", fn_index=2)
    assert "There is no open question" in outputs[-1]


def test_an_answer_to_the_question_before_is_no_answer(interview):
    page = InterviewPage(interview)
    visitor = Client(page.launch(prevent_thread_lock=True, quiet=True), verbose=False)
    try:
        assert "Question 1" in visitor.predict(fn_index=0)[0]
        answer = interview.population.pool.pairs[interview.ask(Visit()).question]["chosen"].strip()
        assert "Question 2" in visitor.predict(answer, fn_index=2)[0]
        outputs = visitor.predict(answer, fn_index=2)  # a second click before the page has changed
        assert "That question has been answered" in outputs[-1]
    finally:
        page.blocks.close()
