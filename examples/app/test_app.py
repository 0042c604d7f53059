"""The page where a person can try a policy: what it asks, shows and writes, and the page itself in a browser."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
import yaml
from tests.testing_utils import ROOT, style_rows, tiny_policy, tiny_tokenizer

from np_trl import QuestionPool, UserProfile
from np_trl.populations.style_grammar import detect_attributes
from np_trl.users.choices import reverse


pytest.importorskip("gradio", reason="the page needs the extra `app`")
pytest.importorskip("sklearn", reason="the page needs the extra `app`")
webdriver = pytest.importorskip("selenium.webdriver", reason="a browser is driven by selenium, of the extra `test`")

from app import ScriptArguments, load_interview  # noqa: E402
from gradio_client import Client  # noqa: E402
from interview import Interview, InterviewArguments, Refusal, Visit  # noqa: E402
from page import FAILURE, MAX_PENDING, MAX_QUEUE, MAX_VISITORS, InterviewPage  # noqa: E402
from population import Population  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402


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


def test_a_question_that_is_in_the_pool_twice_is_asked_once(interview):
    pairs = interview.population.pool.pairs[:3]
    mirrored = [*pairs, *map(reverse, pairs)]
    interview.population.pool = QuestionPool(mirrored, interview.policy, interview.tokenizer)
    visit = interview.choose(interview.ask(Visit()), first=True)
    (answered, _), left = visit.choices[0], []
    while visit.question is not None:
        left.append(visit.question)
        visit = interview.skip(visit)
    assert sorted([*left, answered, (answered + 3) % 6]) == list(range(6))


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
    # two pages of one policy, in turn
    hosts = [interview, Interview(interview.policy, interview.tokenizer, interview.population, interview.args)] * 6

    def serve(host: Interview, visit: Visit) -> tuple:
        return host.choose(visit, first=True), host.write(visit, "How do I fix the bike?")

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert list(pool.map(serve, hosts, visits)) == list(map(serve, hosts, visits))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "Type a prompt"),
        (" \n ", "Type a prompt"),
        ("x" * 100_000, "has 100,000 characters. Shorten it to 1,000"),
        ("fix\x00the bike", "cannot be printed"),
        ("fix \ud800 the bike", "cannot be printed"),
        ("fix it " * 100, "has 201 tokens, and an answer needs room. Shorten it to 127"),
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
    with pytest.raises(ValueError, match="`num_users=2` must be at least 3"):
        people(interview.policy, interview.tokenizer, num_users=2)
    with pytest.raises(ValueError, match="`pool_size=0` must be at least 1"):
        people(interview.policy, interview.tokenizer, pool_size=0)
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
        """Wait until the three readers are written for and nothing has happened for a while."""
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
    page.press(page.button("Start over"))
    assert page.shown == shown[0]
    assert not page.button("Forget last").is_enabled() and not page.button("Start over").is_enabled()


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
        ("fix\x07the bike", "This prompt has characters that cannot be printed. Type it again."),
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
        pair = interview.population.pool.pairs[interview.ask(Visit()).question]
        answer, other = pair["chosen"].strip(), pair["rejected"].strip()
        assert "That question has been answered" in visitor.predict(other, fn_index=2)[-1]  # of the other button
        assert "Question 2" in visitor.predict(answer, fn_index=2)[0]
        outputs = visitor.predict(answer, fn_index=2)  # a second click before the page has changed
        assert "That question has been answered" in outputs[-1]
    finally:
        page.blocks.close()


@pytest.fixture
def served(interview, tmp_path, monkeypatch):
    """A page that was started where the environment would have Gradio open it to others, a client, and tunnels asked for."""
    tunnels = []
    monkeypatch.setattr(
        "gradio.networking.setup_tunnel", lambda **kwargs: tunnels.append(kwargs) or "https://share.it"
    )
    environment = {
        "SHARE": "True",
        "SERVER_NAME": "0.0.0.0",
        "ROOT_PATH": "/elsewhere",
        "MCP_SERVER": "True",
        "ALLOWED_PATHS": "/",
        "TEMP_DIR": str(tmp_path / "uploads"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"GRADIO_{name}", value)
    page = InterviewPage(interview)
    with httpx.Client(base_url=page.launch(prevent_thread_lock=True, quiet=True), timeout=60) as client:
        yield page, client, tunnels
    page.blocks.close()


def call(client: httpx.Client, number: int, data: list, visitor: str = "ada", **headers) -> httpx.Response:
    """Call a function of the page as its script does. The standard library's JSON can write what is no text."""
    body = json.dumps({"fn_index": number, "data": data, "session_hash": visitor})
    headers = {"Content-Type": "application/json", **headers}
    return client.post("/gradio_api/queue/join", content=body, headers=headers)


def answer_of(client: httpx.Client, response: httpx.Response, visitor: str = "ada") -> dict:
    """Wait for what a function that was called returns."""
    event = response.json()["event_id"]
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": visitor}) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}")
            if message.get("event_id") == event and message["msg"] == "process_completed":
                return message
    raise AssertionError("The page ended the connection.")


def test_this_machine_alone_can_open_the_page(served):
    page, client, tunnels = served
    address = page.blocks.local_url
    assert tunnels == [] and page.blocks.share is False and address.startswith("http://127.0.0.1:")
    host = address.removeprefix("http://").rstrip("/")
    port = host.partition(":")[2]
    asked = [
        ({}, 200),
        ({"Origin": f"http://{host}"}, 200),
        ({"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}, 200),
        ({"Host": "evil.example"}, 400),  # a name that was made to mean this machine
        ({"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another page of this machine
    ]
    assert [client.get("/", headers=headers).status_code for headers, _ in asked] == [code for _, code in asked]
    assert [call(client, 0, [None], **headers).status_code for headers, _ in asked[3:]] == [400, 400, 403, 403, 403]


def test_the_page_takes_no_files_and_has_no_other_interface(served, tmp_path):
    _, client, _ = served
    for size in (0, 1, 1000, 5_000_000):
        for path in ("upload", "upload/", "upload?upload_id=a"):
            response = client.post(f"/gradio_api/{path}", files={"files": ("a.txt", b"x" * size)})
            assert (response.status_code, list((tmp_path / "uploads").rglob("*.txt"))) == (404, [])
    (tmp_path / "secret.txt").write_text("secret")
    assert answer_of(client, call(client, 0, [None]))["success"]
    gets = [f"/gradio_api/file={tmp_path}/secret.txt", "/gradio_api/deep_link?session_hash=ada", "/monitoring/summary"]
    posts = [f"/gradio_api/{name}" for name in ("run/answer", "api/answer", "call/answer", "call/v2/answer", "cancel")]
    codes = [client.get(path).status_code for path in gets]
    codes += [client.post(path, json={"data": [None]}).status_code for path in posts]
    assert set(codes) == {404}


def test_calls_that_the_page_does_not_make_are_refused_in_words(served):
    page, client, _ = served
    functions = page.blocks.fns
    wrong = [1, True, ["a"], {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
    for number, function in functions.items():
        size = len(function.inputs)
        bad = [[None] * (size + 1), *([None] * (size - 1) + [value] for value in wrong if size)]
        bad += [[None] * (size - 1), [[[0, True]], *[None] * (size - 1)], ["a", *[None] * (size - 1)]] if size else []
        for data in bad:
            response = call(client, number, data)
            assert response.status_code == 400 and "This is no call of the page's" in response.json()["detail"], data
    for number in (len(functions), -1, 2**70, None, "0", 0.5, [0]):
        assert call(client, number, [None]).status_code == 400
    for visitor in ("", "a" * 65, "\ud800", None, 1):
        assert call(client, 0, [None], visitor).status_code == 400
    for body in (b"", b"{", b"[" * 100_000, b"null", b"\xff"):
        assert client.post("/gradio_api/queue/join", content=body).status_code == 400
    response = call(client, 1, [None, "x" * 2_000_000])
    assert response.status_code == 413 and "1,000,000 bytes. Shorten the prompt" in response.json()["detail"]
    for number in (1, 2, 4, 12):  # a text that is none is for the function to refuse
        message = answer_of(client, call(client, number, [None, "\ud800"]))
        assert message["success"] and 'class="refusal"' in message["output"]["data"][-1]


def test_what_fails_is_no_trace_to_the_visitor(served, interview):
    _, client, _ = served
    interview.population = None  # as nothing should
    message = answer_of(client, call(client, 1, [None, "How do I fix the bike?"]))
    assert not message["success"] and message["output"]["error"] == FAILURE


def test_every_visitor_gets_a_turn(served, interview):
    _, client, _ = served
    calls = [(number, [None, "Fix the bike."]) for number in (1, 3, 12)] + [(number, [None]) for number in (0, 10)]
    with interview.lock, ThreadPoolExecutor(max_workers=8) as pool:  # nothing is done meanwhile
        responses = list(pool.map(lambda each: call(client, *each), calls * 4))
        bob = call(client, 1, [None, "Fix the boat."], "bob")
    let_in = [response for response in responses if response.status_code == 200]
    refused = [response.json()["detail"] for response in responses if response.status_code == 429]
    assert (len(let_in), len(refused)) == (MAX_PENDING, 20 - MAX_PENDING)
    assert refused[0] == f"You wait for {MAX_PENDING} things already. Try again when one of them is done."
    assert answer_of(client, bob, "bob")["success"]
    assert answer_of(client, let_in[-1])["success"]
    assert call(client, 1, [None, "Fix the bike."]).status_code == 200  # when they are done


def test_the_queue_and_what_is_remembered_are_bounded(served, interview):
    page, client, _ = served
    with interview.lock:
        visitors = [f"visitor{number}" for number in range(MAX_QUEUE + 10)]
        responses = [call(client, 1, [None, "Fix the bike."], visitor) for visitor in visitors]
        page.blocks.close()
    # one is being answered
    assert Counter(response.status_code for response in responses) == {200: MAX_QUEUE + 1, 503: 9}
    assert page.blocks.state_holder.capacity == MAX_VISITORS


def test_texts_from_elsewhere_are_shown_as_texts(interview):
    rows = style_rows(num_users=4).map(lambda row: {"prompt": f"<b>{row['prompt']}", "group": f"<u>{row['group']}"})
    interview.population = people(interview.policy, interview.tokenizer, rows)
    page = InterviewPage(interview)
    shown = page.show(interview.choose(interview.ask(Visit()), first=True))
    assert "&lt;b&gt;" in shown[page.question] and "<b>" not in shown[page.question]
    assert "&lt;u&gt;" in shown[page.standing] and "<u>" not in shown[page.standing]
