"""Serving: what is imported before the page answers, Gradio without its stubs, and when garbage is collected."""

from __future__ import annotations

import gc
import inspect
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_studio import FakeStudio

from multilobe_ui.ui import serve

ROOT = Path(__file__).resolve().parents[2]

SERVE = """
import http.client, sys
from multilobe_ui.app.studio import Studio
from multilobe_ui.ui.serve import serve

def start(studio):  # where the loading of the model would begin
    for path in ("/", "/config"):
        page = http.client.HTTPConnection("127.0.0.1", {port}, timeout=60)
        page.request("GET", path)
        answer = page.getresponse()
        assert (answer.status, b"Loading the built-in base model" in answer.read()) == (200, True), path
    heavy = "torch transformers peft accelerate sentence_transformers sklearn scipy spacy textstat"
    print("imported:", [name for name in heavy.split() if name in sys.modules])
    raise SystemExit

Studio.start = start
serve(home={home!r}, port={port})
"""
IMPORT = """
import ast, contextlib, inspect, json, re
from multilobe_ui.ui.serve import without_stubs

parsed = []
ast.get_source_segment = lambda code, node, real=ast.get_source_segment: parsed.append(node.name) or real(code, node)
with {how}:
    import gradio as gr
found = {{
    name: [str(inspect.signature(made.__init__)), made.__doc__, [str(event) for event in getattr(made, "EVENTS", ())]]
    for name, made in vars(gr).items() if inspect.isclass(made)
}}
clicked = [str(inspect.signature(gr.Button.click)), gr.Button.click.__doc__]
bare = re.sub(" at 0x[0-9a-f]+", "", json.dumps([found, clicked]))  # a default's address is another in every process
print(json.dumps({{"gradio": bare, "parsed": parsed}}))
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_answers_before_anything_of_the_model_is_imported(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert "imported: []" in run(SERVE.format(port=port, home=str(tmp_path / "home")))


def test_gradio_without_stubs_is_the_same_but_parses_no_component():
    ours, theirs = (json.loads(run(IMPORT.format(how=how))) for how in ("without_stubs()", "contextlib.nullcontext()"))
    assert ours["parsed"] == []
    assert "Chatbot" in ours["gradio"]
    assert ours["gradio"] == theirs["gradio"]


def test_python_finds_files_again_afterwards():
    before = inspect.getfile
    with pytest.raises(ZeroDivisionError), serve.without_stubs():
        assert inspect.getfile(FakeStudio).endswith("fake_studio.py")  # others than Gradio are answered all the while
        raise ZeroDivisionError
    assert inspect.getfile is before


def test_garbage_waits_until_the_model_is_loaded():
    studio = FakeStudio(0, state="loading")
    waiting = threading.Thread(target=serve._collect_once_loaded, args=(studio,))
    gc.disable()
    try:
        waiting.start()
        assert waiting.is_alive() and not gc.isenabled()
        studio.become_ready()
        waiting.join(30)
        assert gc.isenabled()
    finally:
        gc.enable()


def test_garbage_does_not_wait_for_a_download(monkeypatch):
    monkeypatch.setattr(serve, "LONGEST_WITHOUT_COLLECTION", 0.0)
    gc.disable()
    try:
        serve._collect_once_loaded(FakeStudio(0, state="loading"))
        assert gc.isenabled()
    finally:
        gc.enable()
