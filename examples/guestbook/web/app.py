"""A guestbook: an ordinary Flask app that keeps its entries in a key-value store."""

import time

from flask import Flask, redirect, render_template, request, url_for

import freehold

app = Flask(__name__)
ENTRIES_SHOWN = 20


@app.get("/")
def index():
    book = freehold.store("visitors")
    keys = sorted((key for key in book.keys() if key.startswith("entry-")), reverse=True)[:ENTRIES_SHOWN]
    return render_template(
        "guestbook.html",
        greeting=freehold.config.get("GREETING", "Hello"),
        entries=[book.get_json(key) for key in keys],
        visitors=int(book.get("count") or 0),
    )


@app.post("/sign")
def sign():
    name, words = request.form.get("name", "").strip()[:80], request.form.get("words", "").strip()[:500]
    if not name:
        return "Please give a name.\n", 400
    book = freehold.store("visitors")
    number = book.increment("count")
    book.set_json(f"entry-{number:08d}", {"name": name, "words": words, "at": int(time.time())})
    freehold.log.info(f"entry {number}", context="guestbook")
    return redirect(url_for("index"))
