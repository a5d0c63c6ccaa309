"""The named endpoints over real HTTP: exactly eleven, each works, and the back doors are shut."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from fake_studio import FakeStudio
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from multilobe_ui.ui import api
from multilobe_ui.ui.manage.tab import ManageTab
from multilobe_ui.ui.routers.tab import RoutersTab
from multilobe_ui.ui.train.tab import TrainTab

NAMES = {f"/{name}" for name in api.ENDPOINTS}
TOKEN, OTHER = "t" * 20, "o" * 20
MARK = {"_type": "gradio.FileData"}


def serve(studio, auth=None):
    with gr.Blocks(analytics_enabled=False) as page:
        TrainTab(studio).build()
        RoutersTab(studio).build()
        ManageTab(studio).build()
        api.add_endpoints(studio)
    _, url, _ = page.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, run_history=False, auth=auth
    )
    return SimpleNamespace(page=page, url=url.rstrip("/"), studio=studio)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        yield


@pytest.fixture(scope="module")
def alone(uploads):
    server = serve(FakeStudio(6))
    server.client = Client(server.url, verbose=False)
    yield server
    server.page.close()


@pytest.fixture(scope="module")
def shared(uploads):
    server = serve(FakeStudio(6, shared=True))
    server.client = Client(server.url, verbose=False)
    yield server
    server.page.close()


@pytest.fixture
def sample(alone):
    return handle_file(str(alone.studio.sample_files()["legal"]))


def post(server, name, data):
    """As no official client would: any name, any values. Returns the last event and its data."""
    parameters = server.client.view_api(return_format="dict", print_info=False)["named_endpoints"][f"/{name}"]["parameters"]
    data = [*data, *(parameter["parameter_default"] for parameter in parameters[len(data) :])]
    called = httpx.post(f"{server.url}/gradio_api/call/{name}", json={"data": data})
    event = called.json()["event_id"]
    lines = httpx.get(f"{server.url}/gradio_api/call/{name}/{event}", timeout=20).text.strip().splitlines()
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def free(server, **values):
    names = {job.name for job in server.studio.jobs()}
    return {"name": f"Law {len(names)}", **values}


# ---- the set ---------------------------------------------------------------------------------------------------------


def test_exactly_eleven_named_endpoints(alone):
    info = alone.client.view_api(return_format="dict", print_info=False)
    assert set(info["named_endpoints"]) == NAMES and len(NAMES) == 11
    assert not info["unnamed_endpoints"]


def test_the_whole_page_has_no_others():
    from multilobe_ui.ui.page import build_page

    assert set(build_page(FakeStudio(2)).get_api_info()["named_endpoints"]) == NAMES


def test_every_endpoint_is_documented_and_typed(alone):
    info = alone.client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for name, endpoint in info.items():
        assert len(endpoint["description"]) > 40, name
        assert all(parameter["type"] for parameter in endpoint["parameters"]), name
        assert "request" not in [parameter["parameter_name"] for parameter in endpoint["parameters"]]


# ---- each one works --------------------------------------------------------------------------------------------------


def test_train_status_and_stop(alone, sample):
    settings = {"epochs": 2, "target_modules": "q_proj"}
    job = alone.client.predict(file=sample, **free(alone), settings=settings, api_name="/train")
    assert job["state"] == "running" and job["config"]["epochs"] == 2
    alone.studio.advance(job["id"], 10)
    status = alone.client.predict(job["id"], curve=True, api_name="/train_status")
    assert status["step"] == len(status["curve"]) == 10
    assert "curve" not in alone.client.predict(job["id"], api_name="/train_status")
    assert alone.client.predict(job["id"], api_name="/stop")["state"] == "stopped"


def test_train_with_a_mapping(alone, tmp_path):
    path = tmp_path / "export.csv"
    path.write_text("Frage,Antwort\na,b\nc,d\n")
    mapping = {"prompt": "Frage", "answer": "Antwort"}
    job = alone.client.predict(file=handle_file(str(path)), **free(alone), mapping=mapping, api_name="/train")
    assert job["rows"] == 2
    alone.client.predict(job["id"], api_name="/stop")
    with pytest.raises(AppError, match="no known layout"):
        alone.client.predict(file=handle_file(str(path)), **free(alone), api_name="/train")


def test_chat_streams(alone):
    job = alone.client.submit(message="What does a vaccine do?", api_name="/chat")
    last = job.result(timeout=20)
    events = job.outputs()
    assert events[0]["text"] == "" and events[0]["decision"]["chosen"] == "medical"
    assert last["done"] and last["text"].startswith("A vaccine") and len(events) > 5
    assert [event["cost"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert last["cost"]["answer_tokens"] == last["answer_tokens"] and last["cost"]["resident"] == ["medical", "legal", "python"]


def test_chat_with_choice_history_and_knobs(alone):
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    job = alone.client.submit("And duress?", "lobe:legal", history, 32, 0.0, 7, api_name="/chat")
    assert job.result(timeout=20)["decision"]["chosen"] == "legal"
    _, (messages, choice, sampling, *_) = [call for call in alone.studio.calls if call[0] == "chat"][-1]
    assert [m["content"] for m in messages] == ["Hello", "Hi", "And duress?"] and choice == "lobe:legal"
    assert (sampling.max_new_tokens, sampling.temperature, sampling.seed) == (32, 0.0, 7)


def test_a_client_that_leaves_stops_the_answer():
    studio = FakeStudio(6)
    stream = api.Endpoints(studio).chat("What does a vaccine do?")
    next(stream)
    seen = []
    studio.chat = lambda messages, choice, sampling, stop, **how: seen.append(stop) or iter(())
    list(api.Endpoints(studio).chat("x"))
    assert seen[0].is_set()
    stream.close()


def test_route_and_lobes(alone):
    assert alone.client.predict("Is this contract lawful?", api_name="/route")["chosen"] == "legal"
    assert [lobe["name"] for lobe in alone.client.predict(api_name="/lobes")][:2] == ["medical", "legal"]
    soft = alone.client.predict("Is this contract lawful?", "keyword", "soft", api_name="/route")
    assert soft["router"] == "keyword" and soft["evidence"]["matches"][0]["term"] == "contract"


def test_chat_with_a_router_or_weights(alone):
    job = alone.client.submit("Hello", "mix", weights={"python": 0.5, "maths": 0.5}, api_name="/chat")
    assert job.result(timeout=20)["decision"]["weights"] == {"python": 0.5, "maths": 0.5}
    job = alone.client.submit("a vaccine", router="arrow", api_name="/chat")
    last = job.result(timeout=20)
    assert "".join(token["text"] for token in last["trace"]) == last["text"]
    assert "layers" not in last["trace"][0]


def test_a_router_is_fitted_and_followed(alone):
    gate = {view["name"]: view for view in alone.client.predict(api_name="/routers")}["gate"]
    assert gate["asks_for_fit"] and not gate["fitted"] and gate["why"]
    job = alone.client.predict("gate", {"steps": 50}, api_name="/fit_router")
    assert job["kind"] == "router" and job["config"] == {"steps": 50}
    alone.studio.advance(job["id"], 8)
    status = alone.client.predict(job["id"], True, api_name="/train_status")
    assert len(status["curve"]) == 8 and "loss" in status["curve"][0]["values"]
    assert alone.client.predict(job["id"], api_name="/stop")["state"] == "stopped"
    assert {view["name"]: view for view in alone.client.predict(api_name="/routers")}["gate"]["fitted"]


def test_bundles_go_out_and_come_in(alone):
    path = alone.client.predict(["legal"], api_name="/save_bundle")
    assert path.endswith("lobes.zip")
    assert alone.client.predict(handle_file(path), "rename", api_name="/load_bundle") == ["From a bundle"]
    alone.client.predict(api_name="/save_bundle")
    saved = [arguments for verb, arguments in alone.studio.calls if verb == "save_bundle"]
    assert saved[-2:] == [(["legal"],), (None,)]


def test_delete_lobe(alone):
    left = alone.client.predict("summarisation", api_name="/delete_lobe")
    assert "summarisation" not in left and "legal" in left
    with pytest.raises(AppError, match="no lobe called"):
        alone.client.predict("summarisation", api_name="/delete_lobe")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [("train", [None, "x"], "missing"), ("train", ["/etc/passwd", "x"], "not among the uploads"),
     ("train", [{"path": "/etc/passwd"}, "x"], "missing"), ("train", [{"path": "/etc/passwd", "meta": {}}, "x"], "missing"),
     ("load_bundle", [{"path": "/etc/passwd"}], "missing"), ("train_status", [3], "must be text"),
     ("train_status", ["nobody"], "no job"), ("stop", [None], "must be text"), ("chat", [""], "empty"),
     ("chat", [["x"]], "must be text"), ("chat", ["x", "automatic", "history"], "must be a list"),
     ("chat", ["x", "automatic", [{"role": "root", "content": "x"}]], "must be one of"),
     ("chat", ["x", "automatic", [7]], "must be an object"), ("chat", ["x", "automatic", None, 10**9], "from 1 to 4,?096"),
     ("chat", ["x", "automatic", None, 5, -1], "temperature"), ("route", [None], "must be text"),
     ("route", ["x", "nobody"], "no router"), ("route", ["x", "gate", "all"], "must be one of"),
     ("route", ["x", "gate", "top_k", 0], "from 1 to"), ("chat", ["x", "mix"], "must be an object"),
     ("fit_router", ["nobody"], "must be one of"), ("fit_router", ["gate", {"x": 1}], "must be one of"),
     ("fit_router", ["gate", {"steps": "x"}], "must be a number"), ("fit_router", ["gate", [1]], "must be an object"),
     ("fit_router", ["complexity", None, {"path": "/etc/passwd"}], "missing"),
     ("save_bundle", ["legal"], "must be a list"), ("delete_lobe", [""], "empty")],
)  # fmt: skip
def test_odd_values_are_refused_with_a_sentence(alone, name, values, said):
    event, answer = post(alone, name, values)
    assert event == "error" and re.search(said, answer["error"])


def test_a_path_of_the_server_with_gradio_s_mark_is_refused_by_gradio(alone):
    calls = len(alone.studio.calls)
    event, _ = post(alone, "train", [{"path": "/etc/passwd", "meta": MARK}, "x"])
    assert event == "error" and len(alone.studio.calls) == calls


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"unknown": 1}, {"epochs": "x"}])
def test_settings_are_checked(alone, sample, settings):
    with pytest.raises(AppError, match=next(iter(settings))):
        alone.client.predict(file=sample, **free(alone), settings=settings, api_name="/train")


def test_private_handlers_are_hidden_and_still_guarded(alone):
    config = httpx.get(f"{alone.url}/config").json()
    private = [dep for dep in config["dependencies"] if dep["api_visibility"] == "private" and dep["backend_fn"]]
    assert len(private) > 25
    calls = len(alone.studio.calls)
    lobes = [lobe.name for lobe in alone.studio.lobes()]
    asked = [(number, dep, junk) for number, dep in enumerate(private) for junk in (None, {"path": "/etc/passwd"}, ["x"], 7)]

    def press(client: httpx.Client, number: int, dep: dict, junk: object) -> None:
        data = {"fn_index": dep["id"], "data": [junk] * len(dep["inputs"]), "session_hash": f"junk{number}"}
        client.post(f"{alone.url}/gradio_api/run/predict", timeout=20, json=data)

    with httpx.Client() as client:
        for call in asked:
            press(client, *call)
    alone.studio.become_ready()
    # nothing given can be wrong: a base, or a message to routers, may be "7", and so may a budget; "Fit all" takes no value
    harmless = {"restore_demo", "save_bundle", "change_base", "compare_routers", "prompt_map", "fit_router", "set_memory_budget"}
    made = alone.studio.calls[calls:]
    assert {verb for verb, _ in made} <= {*harmless, "inspect"}
    samples = set(alone.studio.sample_files().values())
    assert all(arguments[0] in samples for verb, arguments in made if verb == "inspect")
    assert all(arguments[1:3] == ({}, None) for verb, arguments in made if verb == "fit_router")
    assert {lobe.name for lobe in alone.studio.lobes()} >= set(lobes)


# ---- owners ----------------------------------------------------------------------------------------------------------


def test_shared_use_wants_a_token_and_keeps_jobs_apart(shared, sample):
    with pytest.raises(AppError, match="token"):
        shared.client.predict(file=sample, **free(shared), api_name="/train")
    with pytest.raises(AppError, match="token"):
        shared.client.predict(file=sample, **free(shared), token="short", api_name="/train")
    job = shared.client.predict(file=sample, **free(shared), token=TOKEN, api_name="/train")
    assert job["mine"]
    assert not shared.client.predict(job["id"], token=OTHER, api_name="/train_status")["mine"]
    with pytest.raises(AppError, match="somebody else"):
        shared.client.predict(job["id"], token=OTHER, api_name="/stop")
    assert shared.client.predict(job["id"], token=TOKEN, api_name="/stop")["state"] == "stopped"


@pytest.mark.parametrize("call", [("/stop", ["x"]), ("/delete_lobe", ["legal"]), ("/fit_router", ["gate"])])
def test_shared_use_without_a_token_changes_nothing(shared, call):
    name, values = call
    calls = len(shared.studio.calls)
    with pytest.raises(AppError, match="token"):
        shared.client.predict(*values, api_name=name)
    assert len(shared.studio.calls) == calls


def test_with_a_login_the_name_is_the_owner(uploads):
    server = serve(FakeStudio(2, shared=True), auth=[("anna", "a"), ("ben", "b")])
    try:
        anna, ben = (Client(server.url, auth=who, verbose=False) for who in (("anna", "a"), ("ben", "b")))
        sample = handle_file(str(server.studio.sample_files()["legal"]))
        job = anna.predict(file=sample, name="Law", api_name="/train")
        assert [arguments[-1] for verb, arguments in server.studio.calls if verb == "train"] == ["user:anna"]
        with pytest.raises(AppError, match="somebody else"):
            ben.predict(job["id"], token=TOKEN, api_name="/stop")
        assert anna.predict(job["id"], api_name="/stop")["state"] == "stopped"
    finally:
        server.page.close()
